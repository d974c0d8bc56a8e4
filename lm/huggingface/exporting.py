"""Exports the model of a run to a folder in Hugging Face format, which `transformers` and other libraries can load.

If the run was imported, or was initialised from an imported run, the export restores the original tensor names and
dtypes, the other files of the folder, and the config.json fields whose settings have not changed since the import.
Otherwise, the export uses a family whose fields can represent the run's settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from lm.config import Config, ModelConfig
from lm.config.schema import effect
from lm.data.tokenizing.special_token_files import NAMES
from lm.errors import UserError
from lm.huggingface import provenance
from lm.huggingface.documents import read_object
from lm.huggingface.families import FAMILIES
from lm.huggingface.families.family import Family, Head, convention
from lm.huggingface.fields import Values, read_settings, write_values
from lm.huggingface.folder import CONFIG, GENERATION_CONFIG, other_files
from lm.huggingface.names import Entry, Slot, entries_of
from lm.huggingface.provenance import Record
from lm.huggingface.recognising import labels_of, names_for
from lm.huggingface.weights import TensorInfo
from lm.huggingface.writing import MAX_SHARD_BYTES, write_folder

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPE_FIELDS = ("dtype", "torch_dtype")  # the names in `transformers` 5 and 4


@dataclass(frozen=True)
class Original:
    """The folder from which a run was imported."""

    directory: Path
    record: Record
    config: Values
    generation_config: Values | None
    tokenizer_config: Values | None

    @classmethod
    def read(cls, directory: Path) -> Original:
        files = directory / provenance.FILES
        found = [read_object(path) if (path := files / name).exists() else None for name in (GENERATION_CONFIG, NAMES)]
        return cls(directory, Record.read(directory), read_object(files / CONFIG), *found)


def export(
    params: Mapping[str, Any],
    config: Config,
    out: Path,
    original: Original | None = None,
    tokenizer_files: Mapping[str, Path | bytes] | None = None,
    special_ids: Mapping[str, Any] | None = None,
    dtype: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Writes a model folder. Returns the name of the `transformers` class.

    Args:
        params: the parameters; their layers may be stacked.
        original: the folder from which the run was imported, or None.
        tokenizer_files: tokenizer files that the original folder lacks or that have changed since the import.
        special_ids: config.json fields such as pad_token_id, written if the run was not imported. pad_token_id is also
            written if the class has changed since the import and needs it to find the last token of a text.
        dtype: a key of DTYPES; if empty, the dtypes of the original folder are used, or float32 if there is no such
            folder.

    Raises UserError, naming the setting, if no family can represent the model.
    """
    family, architecture = choose_class(config, original)
    head = family.heads[architecture]
    entries = entries_of(names_for(family, config.model, head), params, family.unstored)
    same_class = original is not None and original.record.architecture == architecture
    carried = provenance.read_carried(original.directory) if original else {}
    plan: dict[str, tuple[Entry | np.ndarray, TensorInfo]] = {}
    for entry in entries:
        kept = original.record.names.get(entry.name) if original else None
        names = kept if kept and same_class else (entry.name,)
        unused = carried.get(entry.name)
        shape = entry.shape
        if unused is not None:
            shape = (entry.slots[0].shape[0] + len(unused), *shape[1:])
        for name in names:
            plan[name] = entry, TensorInfo(shape, _dtype_of(original, kept, dtype))
    if same_class and original:
        known = {entry.name for entry in entries}
        for name, array in carried.items():
            if name not in known:
                plan[name] = array, TensorInfo(array.shape, DTYPES[dtype] if dtype else array.dtype)
    if not same_class:
        for name, array in family.computed(config.model).items():
            plan[name] = array, TensorInfo(array.shape, DTYPES[dtype or "float32"])
    files: Mapping[str, Path | bytes] = tokenizer_files or {}
    if original:
        files = {**other_files(original.directory / provenance.FILES), **files}
    write_folder(
        out,
        config=config_json(family, architecture, config, original, dtype, special_ids or {}),
        generation_config=original.generation_config if original else None,
        tensors={name: info for name, (_, info) in plan.items()},
        arrays=_arrays(params, plan, carried),
        files=files,
        max_shard_bytes=max_shard_bytes,
    )
    return architecture


def _dtype_of(original: Original | None, kept: tuple[str, ...] | None, dtype: str) -> np.dtype:
    if dtype:
        return DTYPES[dtype]
    if original is None:
        return DTYPES["float32"]
    dtypes = original.record.dtypes
    if kept:
        return dtypes[kept[0]]
    return max(set(dtypes.values()), key=list(dtypes.values()).count)  # for a new head, the most common dtype


def _arrays(
    params: Mapping[str, Any],
    plan: Mapping[str, tuple[Entry | np.ndarray, TensorInfo]],
    carried: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    leaves = flatten_dict(params)

    def values(slot: Slot, dtype: np.dtype) -> np.ndarray:
        leaf = leaves[slot.path]
        return to_host(leaf if slot.layer is None else leaf[slot.layer], dtype)

    for name, (entry, info) in plan.items():
        if isinstance(entry, Entry):
            parts = [values(slot, info.dtype) for slot in entry.slots]
            unused = carried.get(entry.name)
            yield name, entry.join(parts, None if unused is None else unused.astype(info.dtype))
        else:
            yield name, entry.astype(info.dtype)


def to_host(array: Any, dtype: np.dtype) -> np.ndarray:
    """Copies an array to the host, converting it to `dtype` shard by shard.

    Calling `np.asarray` on the whole array would leave a cached copy of the result in the array.
    """
    if isinstance(array, np.ndarray):
        return array.astype(dtype)
    converted = np.empty(array.shape, dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            converted[shard.index] = np.asarray(shard.data)
    return converted


# --- the class and its config.json ----------------------------------------------------------------------------


def choose_class(config: Config, original: Original | None) -> tuple[Family, str]:
    """Returns the family and the class for a model. Raises UserError with the reason if none fits."""
    if original is not None:
        family = FAMILIES[original.record.family]
        try:
            problems = mismatches(family, config.model, original.config)
        except UserError as error:
            problems = [str(error).rstrip(".")]
        if problems:
            raise UserError(
                f"{family.name} models cannot represent {problems[0]}; change this setting back to its original value."
            )
        return family, class_in(family, config, original.record.architecture)
    lacking: dict[str, list[str]] = {}
    refusals = []
    for family in FAMILIES.values():
        if family.settings.get("family") != config.model.family:
            continue
        try:
            lacking[family.name] = mismatches(family, config.model, {})
        except UserError:  # a setting has a value that this family's fields cannot represent
            continue
        if not lacking[family.name]:
            try:
                return family, class_in(family, config, "")
            except UserError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]
    if not lacking:
        raise UserError("no published model family can represent this model.")
    name, problems = min(lacking.items(), key=lambda item: len(item[1]))
    if problems[0].startswith("model.architecture="):
        raise UserError(f"no published model family can represent a model with {problems[0]}.")
    raise UserError(
        f"no published model family can represent this model; the nearest, {name}, does not support "
        f"{', '.join(problems)}."
    )


def mismatches(family: Family, model: ModelConfig, original: Values) -> list[str]:
    """Returns the model settings that a family cannot represent, each as "setting=value".

    Raises UserError if a field of the family cannot represent the value of a setting.
    """
    values = write_values(family.fields, model, original, None)
    settings = {**family.settings, **read_settings(family.fields, family.neutral, values, family.name)}
    found, model = _explicit(resolved(settings)), _explicit(model)
    by_field = {name for each in family.fields for name in each.ours}
    free = {"tie_embeddings", "max_length", "vocab_multiple", "dtype", *({"pooling"} - by_field), *family.free} | {
        name for head in family.heads.values() for name in head.settings
    }
    names = [spec.name for spec in dataclasses.fields(ModelConfig)]
    computed = [name for name in names if effect(Config, f"model.{name}") in ("function", "shapes")]
    different = [name for name in computed if name not in free and getattr(found, name) != getattr(model, name)]
    return [f"model.{name}={getattr(model, name)!r}" for name in different]


def _explicit(model: ModelConfig) -> ModelConfig:
    """Replaces attention_bias="default" with the value that it stands for, so that configs can be compared."""
    if model.attention_bias != "default":
        return model
    return dataclasses.replace(model, attention_bias="all" if model.use_bias else "none")


def resolved(settings: Mapping[str, Any]) -> ModelConfig:
    """Returns the model config with the derived values filled in."""
    model = {"max_length": 16, **settings}
    values = {"model": model, "data": {"sequence_length": 8}}
    if model.get("family") == "encoder_decoder":
        values["objective"] = {"name": "seq2seq"}
    elif model.get("family") == "encoder":
        values["objective"] = {"name": "contrastive"}
    return Config.from_dict(values, reset_unread=True).model


def class_in(family: Family, config: Config, preferred: str) -> str:
    """Returns the family's class with a head for the run's task. Raises UserError if there is no such class."""
    objectives = convention(config.objective.name).heads or (config.objective.name,)
    candidates = {name: head for name, head in family.heads.items() if head.objective in objectives}

    def fits(head: Head) -> bool:
        for settings, section in (("settings", config.model), ("objective_settings", config.objective)):
            own = getattr(head, settings)
            for key in {key for each in candidates.values() for key in getattr(each, settings)}:
                if key == "pooling" and key not in own:
                    continue  # derived, or determined by a field of config.json
                if getattr(section, key) != own.get(key, getattr(type(section)(), key)):
                    return False
        return True

    fitting = [name for name, head in candidates.items() if fits(head)]
    if not fitting:
        needed = {
            f"{section}.{key}={value!r}"
            for head in candidates.values()
            for section, own in (("model", head.settings), ("objective", head.objective_settings))
            for key, value in own.items()
            if getattr(getattr(config, section), key) != value
        }
        reason = f"needs {', '.join(sorted(needed))}" if needed else "does not exist"
        raise UserError(
            f"no `transformers` class fits this run: a {family.name} model for objective.name={config.objective.name} "
            f"{reason}."
        )
    return preferred if preferred in fitting else fitting[0]


def config_json(
    family: Family,
    architecture: str,
    config: Config,
    original: Original | None,
    dtype: str,
    special_ids: Mapping[str, Any],
) -> Values:
    """Returns the content of config.json. Fields of the original file are kept unless their settings have changed."""
    before = None
    if original:
        settings = {**family.settings, **read_settings(family.fields, family.neutral, original.config, "config.json")}
        before = dataclasses.replace(resolved(settings), max_length=settings.get("max_length", config.model.max_length))
    model = config.model
    if before is not None and model.max_length < before.max_length:
        model = dataclasses.replace(model, max_length=before.max_length)  # the import kept fewer positions
    values = write_values(family.fields, model, original.config if original else {}, before)
    values.setdefault("model_type", family.model_types[0])
    if original is None:
        values = {**special_ids, **values}
    elif config.model.pooling == "last" and original.record.architecture != architecture:
        pad = special_ids.get("pad_token_id")
        values |= {} if pad is None or values.get("pad_token_id") is not None else {"pad_token_id": pad}
    if not original or original.record.architecture != architecture:
        values["architectures"] = [architecture]
    has_output = "output" in family.heads[architecture].names.values()
    if has_output and bool(values.get("tie_word_embeddings", family.tie_default)) != model.tie_embeddings:
        values["tie_word_embeddings"] = model.tie_embeddings
    described = convention(config.objective.name)
    if described.labels:
        labels = config.data.labels or ("LABEL_0",)
        if labels_of(values) != labels:
            values["id2label"] = {str(number): label for number, label in enumerate(labels)}
            values["label2id"] = {label: number for number, label in enumerate(labels)}
            values.pop("num_labels", None)
        if described.problem_type and (not original or values.get("problem_type")):
            values["problem_type"] = described.problem_type
    if dtype or not original:
        values |= dict.fromkeys(DTYPE_FIELDS, dtype or "float32")
    elif "dtype" in values:
        values.setdefault("torch_dtype", values["dtype"])  # for `transformers` 4
    return values
