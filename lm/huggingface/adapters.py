"""Exports only the LoRA adapters of a run that was initialised from a published model, in peft format.

peft adds (x A^T) B^T alpha / r to the output of a linear layer. A has shape (r, inputs), and B has shape (outputs, r).
This holds even for GPT-2, whose kernels Hugging Face stores as (inputs, outputs).

If one layer of the published model combines several of ours, such as the query, key and value layers, its A stacks our
A matrices vertically, and its B is block-diagonal. Its r and alpha are therefore multiples of ours. See
https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import Config, ModelConfig
from lm.config.schema import effect
from lm.errors import UserError
from lm.files import expanded
from lm.huggingface.exporting import DTYPES, Original, choose_class, to_host
from lm.huggingface.families.family import Family, convention
from lm.huggingface.folder import HUB_NAME
from lm.huggingface.names import Entry, Slot, entries_of
from lm.huggingface.recognising import names_for
from lm.huggingface.weights import TensorInfo
from lm.huggingface.writing import write_object, write_tensors, writing_folder
from lm.models.parameters import ADAPTER, merge_adapters, unstack_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # prefix of all tensor names
MERGED = "export the merged model instead (without --adapters)"
ADAPTER_SETTINGS = ("lora_rank", "lora_alpha", "lora_targets")
MAY_DIFFER = (*ADAPTER_SETTINGS, "max_length", "dtype")  # settings that need not match those of the imported model


@dataclass(frozen=True)
class Adapted:
    """A linear layer of the published model that has an adapter."""

    module: str  # the module name in the `transformers` class
    entry: Entry
    slots: tuple[Slot | None, ...]  # one per kernel of our model in this layer; None for a kernel without an adapter

    @property
    def multiple(self) -> int:
        """The number of adapters in the layer; our rank and alpha are multiplied by it."""
        return sum(slot is not None for slot in self.slots)

    def matrices(self, leaves: Mapping[tuple[str, ...], Any], dtype: np.dtype) -> dict[str, np.ndarray]:
        """Returns A, (r, inputs), and B, (outputs, r), keyed by their names in the file."""

        def values(slot: Slot, name: str) -> np.ndarray:
            leaf = leaves[*slot.path[:-1], name]
            return to_host(leaf if slot.layer is None else leaf[slot.layer], dtype)

        firsts: list[np.ndarray] = []
        outputs = sum(kernel.outputs for kernel in self.entry.slots)
        seconds: list[np.ndarray] = []
        begin = 0
        for kernel, slot in zip(self.entry.slots, self.slots, strict=True):
            if slot is not None:
                a, b = (values(slot, name) for name in ADAPTER)
                rank = a.shape[-1]
                firsts.append(a.reshape(-1, rank).T)
                seconds.append(np.zeros((outputs, rank), dtype))
                seconds[-1][begin : begin + kernel.outputs] = b.reshape(rank, -1).T
            begin += kernel.outputs
        parts = {"lora_A": np.concatenate(firsts), "lora_B": np.concatenate(seconds, axis=1)}
        return {f"{PREFIX}{self.module}.{name}.weight": array for name, array in parts.items()}


def merged(params: dict[str, Any], config: Config) -> tuple[dict[str, Any], Config]:
    """Returns the parameters and the config of a run with its adapters, if any, merged into the linear layers."""
    if config.model.lora_rank:
        params, _ = merge_adapters(params, config.model)
    return params, without_adapters(config)


def without_adapters(config: Config) -> Config:
    defaults = {name: getattr(ModelConfig(), name) for name in ADAPTER_SETTINGS}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **defaults))


def export_adapters(
    params: Mapping[str, Any],
    config: Config,
    out: Path,
    original: Original | None,
    imported: tuple[Mapping[str, Any], ModelConfig] | None,
    dtype: str = "",
) -> str:
    """Writes a folder that peft can load on top of the published model. Returns the name of the model class.

    Args:
        params: the parameters of the run, including the adapters; their layers may be stacked.
        original: the folder from which the run was imported, or None.
        imported: the parameters and the model settings right after the import, or None.
        dtype: a key of DTYPES; if empty, float32.

    Raises UserError if the run has no adapters or was not initialised from an imported model, or if it differs from the
    published model in more than the adapters, because the adapters alone would then give different results.
    """
    if not config.model.lora_rank:
        raise UserError("--adapters: this run has no adapters (config.model.lora_rank is 0); leave out --adapters.")
    if original is None or imported is None:
        raise UserError(f"--adapters: the run was not initialised from an imported model; {MERGED}.")
    family, architecture = choose_class(without_adapters(config), original)
    if architecture != original.record.architecture:
        raise UserError(
            f"--adapters: the run's model is now a {architecture}, but {original.record.source} is a "
            f"{original.record.architecture}, and peft adapters do not include a head; {MERGED}."
        )
    before, settings = imported
    _check_settings(config.model, settings)
    _check_others(params, before)
    leaves = flatten_dict(params)
    found = adapted_layers(family, architecture, config.model, leaves, original.record.dtypes)
    values = adapter_config(config, original, architecture, family, found)
    chosen = DTYPES[dtype or "float32"]
    tensors = {
        name: array for layer in found.layers for name, array in layer.matrices(leaves, chosen).items()
    }  # adapters are small, so all of their tensors are kept in memory at once
    with writing_folder(out) as folder:
        write_object(folder / CONFIG, values)
        infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
        write_tensors(folder, {WEIGHTS: infos}, tensors.items())
    return architecture


def _check_settings(model: ModelConfig, before: ModelConfig) -> None:
    """Raises UserError if a setting that affects the output was changed after the import."""
    for spec in dataclasses.fields(ModelConfig):
        if spec.name in MAY_DIFFER or effect(Config, f"model.{spec.name}") not in ("function", "shapes"):
            continue
        new, old = getattr(model, spec.name), getattr(before, spec.name)
        if new != old:
            raise UserError(
                f"--adapters: config.model.{spec.name}={new!r}, but the imported model has {old!r}, so the adapters "
                f"alone would give different results; {MERGED}."
            )


def _check_others(params: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises UserError if a parameter other than an adapter differs from the imported parameter."""
    now, old = (flatten_dict(unstack_layers(dict(tree)), sep="/") for tree in (params, before))
    now = {name: value for name, value in now.items() if not name.endswith(ADAPTER)}
    changed = [
        name
        for name in {**now, **old}
        if name not in now or name not in old or not np.array_equal(np.asarray(now[name]), np.asarray(old[name]))
    ]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"--adapters: the run differs from the imported model in {changed[0]}{more}, so the adapters alone would "
            f"give different results; {MERGED}, or train with "
            f"config.optimizer.freeze={(changed[0].partition('/')[0],)!r}."
        )


# --- layers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    layers: list[Adapted]
    every: list[str]  # names of all modules in the `transformers` class


def adapted_layers(
    family: Family,
    architecture: str,
    model: ModelConfig,
    leaves: Mapping[tuple[str, ...], Any],
    tensors: Iterable[str],
) -> Layers:
    """Returns the layers of the published model that have adapters, and the names of all modules.

    Args:
        tensors: the names of all tensors in the published folder, including those that we do not use. Their prefixes
            may differ from those of the class.
    """
    head = family.heads[architecture]
    others = unflatten_dict({path: leaf for path, leaf in leaves.items() if path[-1] not in ADAPTER})
    layers: list[Adapted] = []
    modules: list[str] = []  # in the family's own spelling
    # The class without a head uses no prefix.
    prefix = family.spelling.prefix if not head.names else ""
    for entry in entries_of(names_for(family, model, head), others, family.unstored):
        module = entry.name.rpartition(".")[0]
        modules.append(module)
        has = [slot.path[-1] == "kernel" and (*slot.path[:-1], ADAPTER[0]) in leaves for slot in entry.slots]
        if any(has):
            slots = tuple(slot if found else None for slot, found in zip(entry.slots, has, strict=True))
            layers.append(Adapted(module.removeprefix(prefix), entry, slots))
    known = {*modules, *family.kept, *(name for each in family.heads.values() for name in each.names)}
    modules += [_own_spelling(name.rpartition(".")[0], family, known) for name in tensors]
    return Layers(layers, [module.removeprefix(prefix) for module in modules])


def _own_spelling(module: str, family: Family, known: Collection[str]) -> str:
    """Returns the family's own spelling of a module name from a file."""
    for other in family.spelling.others:
        own = family.spelling.prefix + module.removeprefix(other)
        if module.startswith(other) and own in known:
            return own
    return module


def short_names(chosen: Collection[str], every: Iterable[str]) -> list[str]:
    """Returns the shortest suffixes that distinguish the chosen module names from all others.

    peft matches modules by the suffixes of their names. If only a suffix with a layer number is unambiguous, the full
    name is listed for every layer. In BERT, for example, `output.dense` also matches `attention.output.dense`.
    """
    others = set(every) - set(chosen)
    found: dict[str, None] = {}
    for name in chosen:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        usable = (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))
        shortest = next(usable)
        found[name if re.search(r"(^|\.)\d+(\.|$)", shortest) else shortest] = None
    return list(found)


def base_model(source: str) -> tuple[str, str | None]:
    """Returns the location of the published model (a path, or a name on the hub) and its revision.

    The revision is None if the source does not specify one.

    Raises UserError if peft could not load the model.
    """
    path = expanded(source)
    if path.suffix == ".gguf":
        raise UserError(f"--adapters: peft cannot load the base model from the GGUF file {source}; {MERGED}.")
    if path.is_absolute() or path.is_dir():
        return str(path.absolute()), None
    if not HUB_NAME.fullmatch(source):
        raise UserError(
            f"--adapters: the base model {source!r} is neither a local folder nor a name on the hub; run the command "
            f"in the directory where the model was imported, or {MERGED}."
        )
    name, _, revision = source.partition("@")
    return name, revision or None


def adapter_config(
    config: Config,
    original: Original,
    architecture: str,
    family: Family,
    found: Layers,
) -> dict[str, Any]:
    """Returns the content of adapter_config.json."""
    model, layers, every = config.model, found.layers, found.every
    counts = [layer.multiple for layer in layers]
    usual = max(set(counts), key=counts.count)
    unusual = {count: [layer.module for layer in layers if layer.multiple == count] for count in {*counts} - {usual}}
    factors = {re.escape(end): count for count, modules in unusual.items() for end in short_names(modules, every)}
    base, revision = base_model(original.record.source)
    return {
        "peft_type": "LORA",
        "task_type": convention(family.heads[architecture].objective).peft or None,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": usual * model.lora_rank,
        "lora_alpha": usual * model.lora_alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": any(layer.entry.place.inputs_first for layer in layers),
        "target_modules": sorted(short_names([layer.module for layer in layers], every)),
        "modules_to_save": None,
        "rank_pattern": {end: count * model.lora_rank for end, count in factors.items()},
        "alpha_pattern": {end: count * model.lora_alpha for end, count in factors.items()},
    }
