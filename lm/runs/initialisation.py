"""The parameters that a run begins with, taken from another run (config.init_from)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, ModelConfig
from lm.errors import UserError
from lm.models.transformer.stack import STACK_NAME, stack_layers, unstack_layers
from lm.runs.directory import RunDirectory

# Settings that decide shapes: those of one kind of parameter, and of all.
SHAPES_OF = {
    "position_embedding": ("max_length",),
    "relative_bias": ("relative_buckets",),
    "type_embedding": ("token_types",),
    "token_embedding": ("vocab_size",),
    "source_embedding": ("source_vocab_size",),
    "output": ("vocab_size",),
    "output_bias": ("vocab_size",),
    "lora_a": ("lora_rank",),
    "lora_b": ("lora_rank",),
}
SHAPES = ("num_layers", "num_encoder_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
# Settings with which equal parameters compute something else.
MEANING = (
    "family",
    "positions",
    "relative_max_distance",
    "rotary_theta",
    "local_rotary_theta",
    "rotary_interleaved",
    "norm",
    "norm_position",
    "norm_epsilon",
    "activation",
    "scale_attention",
    "norm_embeddings",
    "scale_embeddings",
    "window",
    "global_every",
)


@dataclass(frozen=True)
class Initial:
    """What `load_initial` gives."""

    values: dict[str, Any]  # nested as the parameters, with those that match: jax.Array on the shardings asked for
    lines: list[str]  # what was taken, what was not, in words


def source_run(config: Config) -> RunDirectory:
    """The run directory of config.init_from. Raises UserError if it is none."""
    root = Path(config.init_from)
    if not (root / "config.json").is_file():
        raise UserError(
            f"config.init_from: {root} is not a run directory (it has no config.json); name the --workdir of a run."
        )
    return RunDirectory(root)


def load_initial(config: Config, abstract_params: dict[str, Any]) -> Initial:
    """The parameters of config.init_from that have the names of `abstract_params`. All processes call it.

    Of that run's best checkpoint, and the moving average if it keeps one. Stacked and unrolled layers are turned into
    one another. Parameters that are new here, and those that are not used, are told and no error.

    Args:
        config: resolved, of the run that begins.
        abstract_params: nested dict of jax.ShapeDtypeStruct with shardings.

    Raises:
        UserError: no run directory, no intact checkpoint, a shape that differs, nothing that matches, or adapters that
            this model has not.
    """
    directory, root = source_run(config), Path(config.init_from)
    try:
        theirs = directory.load_config()
        ema = theirs.optimizer.ema_decay > 0
        with Checkpoints(directory.checkpoints_dir, theirs.checkpoint, read_only=True) as checkpoints:
            saved, step = checkpoints.restore_params(None, "best", ema=ema)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from None

    # Compared in one form, in which another number of layers is another shape too.
    stacked = jax.tree.map(np.asarray, stack_layers(saved))
    found = traverse_util.flatten_dict(stacked, sep="/")
    wanted = traverse_util.flatten_dict(jax.eval_shape(stack_layers, abstract_params), sep="/")
    shared = [name for name in wanted if name in found]
    unused = [name for name in found if name not in wanted]
    for name in shared:
        if found[name].shape != wanted[name].shape:
            raise UserError(_wrong_shape(name, found[name].shape, wanted[name].shape, root, theirs.model, config.model))
    if any(name.endswith("/lora_a") for name in unused):
        raise UserError(
            f"config.init_from: {root} has adapters and this model has not those; merge them first (python -m "
            f"lm.merge_lora --workdir={root} --output=NEW), or set the model.lora_* settings of that run."
        )
    if not shared:
        raise UserError(
            f"config.init_from: no parameter of {root} is in this model ({', '.join(_tops(found))} there, "
            f"{', '.join(_tops(wanted))} here); use that run's model settings."
        )
    is_stacked = config.model.scan_layers
    values = traverse_util.unflatten_dict({name: found[name] for name in shared}, sep="/")
    placed = _placed(values if is_stacked else unstack_layers(values), abstract_params)

    lines = [
        f"Parameters of {root}, step {step:,}{' (moving average)' if ema else ''}: "
        f"{len(shared)} of {len(wanted)} kinds are taken."
    ]
    new = [name for name in wanted if name not in found]
    lines += [f"  new, random: {_listed(new, is_stacked)}"] if new else []
    lines += [f"  not used: {_listed(unused, is_stacked)}"] if unused else []
    differing = [f"{name} {a!r} -> {b!r}" for name, a, b in _differing(theirs.model, config.model, MEANING)]
    lines += [f"  settings that differ: {', '.join(differing)}"] if differing else []
    return Initial(placed, lines)


def _wrong_shape(
    name: str, there: tuple[int, ...], here: tuple[int, ...], root: Path, theirs: ModelConfig, ours: ModelConfig
) -> str:
    parts = name.split("/")
    settings = [each for part in parts for each in SHAPES_OF.get(part, ())]
    advice = [f"config.model.{each}={old!r} (here {new!r})" for each, old, new in _differing(theirs, ours, settings)]
    advice = advice or [
        f"config.model.{each}={old!r} (here {new!r})" for each, old, new in _differing(theirs, ours, SHAPES)
    ]
    todo = f"set {', '.join(advice)}" if advice else "use that run's model settings"
    if parts[0] == "classifier" and there[-1] != here[-1]:
        todo = "its labels are others: take the same labels, or begin with a run that has no classifier"
    return f"config.init_from: {name} has shape {list(there)} in {root} and {list(here)} here; {todo}."


def _differing(theirs: ModelConfig, ours: ModelConfig, names: Any) -> list[tuple[str, Any, Any]]:
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
    return [(name, old, new) for name, old, new in pairs if old != new]


def _placed(values: dict[str, Any], abstract: dict[str, Any]) -> dict[str, Any]:
    """Each device takes its own part."""

    def place(value: Any, leaf: Any) -> Any:
        if isinstance(value, dict):
            return _placed(value, leaf)
        array = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])

    return {name: place(value, abstract[name]) for name, value in values.items()}


def _listed(names: list[str], is_stacked: bool) -> str:
    """Names as in the table of parameters, those of one part together: "classifier (bias, kernel)"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part, _, kind = name.rpartition("/")
        part = part if is_stacked else re.sub(rf"(^|/){STACK_NAME}(/|$)", r"\1layer_*\2", part)
        groups.setdefault(part, []).append(kind)
    return ", ".join(f"{part} ({', '.join(kinds)})" for part, kinds in groups.items())


def _tops(flat: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in flat))
