"""Detects damaged or mixed-up run directories by comparing their files with the metadata of their checkpoints.

The metadata of a checkpoint holds the fingerprints of the data and the tokenizers (`data`, see lm/runs/prepare.py) and
the settings on which the parameters depend (`config`). An entry is compared only if it is present, so older
checkpoints, which lack the settings, remain valid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.config.schema import EFFECTS, differences, effect
from lm.errors import UserError

DERIVED_FROM_DATA = (("model", "vocab_size"), ("model", "source_vocab_size"), ("data", "labels"))
# Settings determined by train.num_epochs and the data, each with the value that stands for "not yet known".
DERIVED_FROM_EPOCHS = (("train", "num_steps", -1), ("optimizer", "decay_steps", 0), ("optimizer", "warmup_steps", -1))
# These settings may change when a run is extended. RunDirectory checks whether the run may be extended.
LENGTH = ("train.num_steps", "train.num_epochs", "optimizer.decay_steps")
# Commands other than training compare only settings with these effects, which determine what the model computes and
# for which tokens. To these commands, it does not matter how the parameters were trained or are stored.
FOR_READING = ("function", "shapes", "batches")
FOR_TRAINING = tuple(name for name in EFFECTS if name not in ("nothing", "location"))
SHOWN = 4  # number of differences listed in a message


def recorded_settings(config: Config) -> dict[str, Any]:
    """Returns the values of all settings that affect the parameters, the model or the data, keyed by dotted name."""
    return {name: value for name, value in _flat(config.to_dict()) if effect(Config, name) in FOR_TRAINING}


def check_settings(
    checkpoint: Path, metadata: Mapping[str, Any], found: Mapping[str, Any], effects: Collection[str], where: Path
) -> None:
    """Raises UserError if a checkpoint was trained with settings other than `found`, which were read from `where`."""
    saved = metadata.get("config", {})
    underived = {f"{section}.{name}" for section, name in DERIVED_FROM_DATA if not found[f"{section}.{name}"]}
    underived |= {
        f"{section}.{name}" for section, name, unknown in DERIVED_FROM_EPOCHS if found[f"{section}.{name}"] == unknown
    }
    # A setting that was added or removed after the checkpoint was written is missing on one side.
    names = [name for name in saved if name in found and name not in underived and effect(Config, name) in effects]
    names = [name for name in names if effects is not FOR_TRAINING or name not in LENGTH]
    lines = differences({name: saved[name] for name in names}, {name: found[name] for name in names})
    if lines:
        listed = "; ".join(f"{line:.70}" for line in lines[:SHOWN])
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise UserError(
            f"{checkpoint} was trained with settings other than those in {where} ({listed}{more}). One of the two "
            "was edited or comes from another run; restore the original."
        )


def check_tokenizer(checkpoint: Path, metadata: Mapping[str, Any], name: str, fingerprint: str, where: Path) -> None:
    """Raises UserError if a checkpoint was trained with a tokenizer other than the one in `where`."""
    saved = metadata.get("data", {}).get(name)
    if saved is not None and saved != fingerprint:
        raise UserError(
            f"{where} is not the tokenizer that {checkpoint} was trained with, so one of the two comes from another "
            "run; restore the original."
        )


def check_data(checkpoint: Path, metadata: Mapping[str, Any], fingerprint: Mapping[str, str], root: Path) -> None:
    """Raises UserError, with the names of the changed data sources, if a checkpoint was trained on other data."""
    if (saved := metadata.get("data")) is None:
        return
    names = saved.keys() | fingerprint.keys()
    if changed := sorted(name for name in names if saved.get(name) != fingerprint.get(name)):
        raise UserError(
            f"{root}: the data differs from the data on which this run was trained (checkpoint {checkpoint.name}); "
            f"these parts changed: {', '.join(changed)[:200]}. Restore the old data, or start a new run in another "
            "--workdir."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, JSON value) for each setting, including the settings of data sources."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
