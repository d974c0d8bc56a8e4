"""Initialises the parameters of a run from another run (config.init_from)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from lm.config import Config, ModelConfig
from lm.config.schema import effect
from lm.errors import UserError, named_errors
from lm.models import MODELS
from lm.models.parameters import STACK_NAME, stack_layers, unstack_layers
from lm.runs.directory import RunDirectory


class Initial(NamedTuple):
    values: dict[str, Any]  # the matching parameters of the other run, nested as in the model
    lines: list[str]  # a report of which parameters match


def source_run(config: Config) -> RunDirectory:
    """Returns the run directory at config.init_from. Raises UserError if the directory is missing or damaged."""
    run = RunDirectory(Path(config.init_from))
    if not run.config_path.is_file():
        advice = "set it to the --workdir of a run."
        raise UserError(f"config.init_from: {run.root} is not a run directory (it has no config.json); {advice}")
    with named_errors("config.init_from"):
        return RunDirectory.existing(run.root)


def load_initial(config: Config, abstract_params: dict[str, Any]) -> Initial:
    """Loads the parameters of config.init_from whose names are in `abstract_params`, with the shardings given there.

    The parameters, or their moving average if the run keeps one, come from the run's best checkpoint. Layers are
    stacked or unstacked as needed. All processes must call this function. Raises UserError if there is no run directory
    or no intact checkpoint, if a shape differs, if no parameter matches, or if this model lacks the run's adapters.
    """
    directory, root = source_run(config), Path(config.init_from)
    with named_errors("config.init_from"):
        theirs = directory.load_config()
        ema = theirs.optimizer.ema_decay > 0
        with directory.open_checkpoints(theirs) as checkpoints:
            saved, step = checkpoints.restore_params(None, "best", ema=ema)

    # Layers are stacked before the comparison, so that a different number of layers shows up as a different shape.
    # If an architecture has layers of different shapes, they cannot be stacked and are compared one by one.
    alike = MODELS[config.model.architecture].alike_layers
    arrange = stack_layers if alike else unstack_layers
    found = traverse_util.flatten_dict(jax.tree.map(np.asarray, arrange(saved)), sep="/")
    wanted = traverse_util.flatten_dict(jax.eval_shape(arrange, abstract_params), sep="/")
    shared = [name for name in wanted if name in found]
    unused = [name for name in found if name not in wanted]
    for name in shared:
        if found[name].shape != wanted[name].shape:
            raise UserError(_wrong_shape(name, found[name].shape, wanted[name].shape, root, theirs.model, config.model))
    if any(name.endswith("/lora_a") for name in unused):
        merge = f"python -m lm.merge_lora --workdir={root} --output=NEW"
        advice = f"merge them first ({merge}), or use the model.lora_* settings of that run."
        raise UserError(f"config.init_from: {root} has adapters that this model does not have; {advice}")
    if not shared:
        tops = f"{_tops(found)} in that run, {_tops(wanted)} in this one"
        problem = f"no parameter of {root} is in this model ({tops})"
        raise UserError(f"config.init_from: {problem}; use the model settings of that run.")
    is_stacked, leaves = alike and config.model.scan_layers, traverse_util.flatten_dict(abstract_params)
    placed = {}
    values = traverse_util.unflatten_dict({name: found[name] for name in shared}, sep="/")
    for path, value in traverse_util.flatten_dict(values if is_stacked else unstack_layers(values)).items():
        array = np.asarray(value, leaves[path].dtype)  # each device gets only its own shard
        placed[path] = jax.make_array_from_callback(array.shape, leaves[path].sharding, array.__getitem__)

    origin = f"{root}, step {step:,}{' (moving average)' if ema else ''}"
    lines = [f"{len(shared)} of the {len(wanted)} arrays of this model are initialised from {origin}."]
    new = [name for name in wanted if name not in found]
    lines += [f"  randomly initialised: {_listed(new, is_stacked)}"] if new else []
    lines += [f"  not used: {_listed(unused, is_stacked)}"] if unused else []
    computed = [name for name in vars(config.model) if effect(Config, f"model.{name}") == "function"]
    differing = [f"{name} {a!r} -> {b!r}" for name, a, b in _differing(theirs.model, config.model, computed)]
    lines += [f"  settings that differ: {', '.join(differing)}"] if differing else []
    return Initial(traverse_util.unflatten_dict(placed), lines)


def _wrong_shape(
    name: str, there: tuple[int, ...], here: tuple[int, ...], root: Path, theirs: ModelConfig, ours: ModelConfig
) -> str:
    """Returns the error message for a parameter whose shape differs. The message names the responsible settings."""
    levels, fields = name.split("/"), dataclasses.fields(ModelConfig)
    parameters = {each.name: {*each.metadata.get("parameters", ())} for each in fields}
    special = [setting for setting, names in parameters.items() if names.intersection(levels)]
    general = [each.name for each in fields if each.metadata.get("affects") == "shapes" and not parameters[each.name]]
    differing = _differing(theirs, ours, special) or _differing(theirs, ours, general)
    settings = ", ".join(f"config.model.{setting}={old!r} (here {new!r})" for setting, old, new in differing)
    advice = f"set {settings}" if settings else "use that run's model settings"
    if levels[0] == "classifier" and there[-1] != here[-1]:
        advice = "the labels of that run differ; use the same labels, or initialise from a run without a classifier"
    return f"config.init_from: {name} has shape {list(there)} in {root} and {list(here)} here; {advice}."


def _differing(theirs: ModelConfig, ours: ModelConfig, names: Sequence[str]) -> list[tuple[str, Any, Any]]:
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
    return [(name, old, new) for name, old, new in pairs if old != new]


def _listed(names: list[str], is_stacked: bool) -> str:
    """Formats parameter names, grouped by module as in the parameter table: "classifier (bias, kernel)"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        module, _, kind = name.rpartition("/")
        module = module if is_stacked else re.sub(rf"(^|/){STACK_NAME}(/|$)", r"\1layer_*\2", module)
        groups.setdefault(module, []).append(kind)
    return ", ".join(f"{module} ({', '.join(kinds)})" for module, kinds in groups.items())


def _tops(flat: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(name.split("/")[0] for name in flat))
