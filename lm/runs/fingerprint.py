"""Detects damaged or mixed-up run directories by comparing their files with the metadata of their checkpoints.

The metadata of a checkpoint holds the fingerprints of the data and the tokenizers (`data`, see lm/runs/prepare.py) and
the settings on which the parameters depend (`config`). An entry is compared only if it is present, so older
checkpoints, which lack the settings, remain valid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.config.schema import EFFECTS, differences, effect
from lm.errors import UserError

# Settings determined by the data, or by train.num_epochs and the data, each with the value that means "not yet known".
DERIVED_FROM_DATA: dict[str, Any] = {
    "model.vocab_size": 0,
    "model.source_vocab_size": 0,
    "model.ngram.sizes": [],
    "data.labels": [],
}
DERIVED_FROM_EPOCHS = {"train.num_steps": -1, "optimizer.decay_steps": 0, "optimizer.warmup_steps": -1}
# These settings may change when a run is extended. RunDirectory checks whether the run may be extended.
LENGTH = ("train.num_steps", "train.num_epochs", "optimizer.decay_steps")
# Commands other than training compare only settings with these effects, which determine what the model computes and
# for which tokens. For these commands, it does not matter how the parameters were trained or are stored.
FOR_READING = ("function", "shapes", "batches")
FOR_TRAINING = tuple(name for name in EFFECTS if name not in ("nothing", "location"))


def recorded_settings(config: Config) -> dict[str, Any]:
    """Returns the values of all settings that affect the parameters, the model or the data, keyed by dotted name."""
    return {name: value for name, value in _flat(config.to_dict()) if effect(Config, name) in FOR_TRAINING}


def check_settings(
    checkpoint: Path, metadata: Mapping[str, Any], found: Mapping[str, Any], effects: Collection[str], where: Path
) -> None:
    """Raises UserError if a checkpoint was trained with settings other than `found`, which were read from `where`."""
    saved = metadata.get("config", {})
    derived = DERIVED_FROM_DATA | DERIVED_FROM_EPOCHS
    underived = {name for name, unknown in derived.items() if found[name] == unknown}
    # A setting that was added or removed after the checkpoint was written is missing on one side.
    names = [name for name in saved if name in found and name not in underived and effect(Config, name) in effects]
    names = [name for name in names if effects is not FOR_TRAINING or name not in LENGTH]
    lines = differences({name: saved[name] for name in names}, {name: found[name] for name in names})
    if lines:
        raise UserError(
            f"{checkpoint} was trained with settings other than those in {where} ({listed(lines, 4, 70)}). One of the "
            "two was edited or comes from another run; restore its original version."
        )


def listed(lines: Sequence[str], most: int, width: int) -> str:
    """Joins the first `most` lines, each truncated to `width` characters, and states how many more there are."""
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "; ".join([f"{line:.{width}}" for line in lines[:most]] + more)


def check_tokenizer(checkpoint: Path, metadata: Mapping[str, Any], name: str, fingerprint: str, where: Path) -> None:
    """Raises UserError if a checkpoint was trained with a tokenizer other than the one in `where`."""
    if metadata.get("data", {}).get(name) not in (None, fingerprint):
        problem = f"{where} is not the tokenizer that {checkpoint} was trained with"
        raise UserError(f"{problem}, so one of the two comes from another run; restore its original version.")


def check_data(checkpoint: Path, metadata: Mapping[str, Any], fingerprint: Mapping[str, str], root: Path) -> None:
    """Raises UserError, naming the parts of the data that changed, if a checkpoint was trained on other data."""
    saved = metadata.get("data", fingerprint)
    names = saved.keys() | fingerprint.keys()
    if changed := sorted(name for name in names if saved.get(name) != fingerprint.get(name)):
        problem = f"the data differs from the data on which this run was trained (checkpoint {checkpoint.name})"
        advice = "Restore the old data, or start a new run in another --workdir."
        raise UserError(f"{root}: {problem}; these parts changed: {', '.join(changed)[:200]}. {advice}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, JSON value) for each setting, including the settings of data sources."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
