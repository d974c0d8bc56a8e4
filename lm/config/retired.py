"""Settings that no longer exist, and what became of them.

A run directory written before is read with them dropped or renamed (`migrated`); a config file or a flag that gives
one is rejected with a message that says what to do (`explanation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Retired:
    """What became of a setting.

    Attributes:
        reason: completes "is no longer a setting; ...".
        renamed: its new dotted key, with as many parts as the old one and "*" for a part that stays the same; "" if
            the setting was dropped.
    """

    reason: str = ""
    renamed: str = ""


RETIRED = {
    "model.head": Retired("it follows from objective.name."),
    "model.num_classes": Retired("it follows from data.labels."),
    "model.max_hidden": Retired("it follows from objective.noise_density."),
    "model.pair_head": Retired("set objective.next_sentence."),
}
# (dotted key, former value): the value that stands for it today.
RETIRED_VALUES = {("model.pooling", "none"): ""}  # of tagging, where each token stands for itself


def explanation(dotted: str) -> str:
    """Returns why a setting is gone and what replaces it, to put after "config.KEY: "; "" if it never existed."""
    key = tuple(dotted.split("."))
    found = _find(key)
    if found is None:
        return ""
    reason = found.reason or f"it is now called config.{'.'.join(_new_key(key, found))}."
    return f"is no longer a setting; {reason}"


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of an old config.json with retired ones dropped or renamed."""
    from flax import traverse_util  # here, because settings can be read without loading JAX

    flat = traverse_util.flatten_dict(dict(values), keep_empty_nodes=True)
    retired = {key: _find(key) for key in flat}
    kept = {key: value for key, value in flat.items() if retired[key] is None}
    kept |= {_new_key(key, found): flat[key] for key, found in retired.items() if found and found.renamed}
    for (dotted, former), value in RETIRED_VALUES.items():
        if kept.get(tuple(dotted.split("."))) == former:
            kept[tuple(dotted.split("."))] = value
    return traverse_util.unflatten_dict(kept)


def _find(key: tuple[str, ...]) -> Retired | None:
    for pattern, retired in RETIRED.items():
        parts = pattern.split(".")
        if len(parts) == len(key) and all(part in ("*", name) for part, name in zip(parts, key, strict=True)):
            return retired
    return None


def _new_key(key: tuple[str, ...], found: Retired) -> tuple[str, ...]:
    return tuple(name if part == "*" else part for part, name in zip(found.renamed.split("."), key, strict=True))
