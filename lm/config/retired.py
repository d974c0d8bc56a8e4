"""Settings that no longer exist: the advice for users who still set them, and the conversion of old run directories."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]  # settings of one section by name


@dataclass(frozen=True)
class Retired:
    """A removed setting."""

    advice: str  # what to do instead, as the end of a sentence
    # Converts the old value to the settings that replace it when an old run directory is read.
    replacements: Callable[[Any], Values] = lambda value: {}


RETIRED: dict[str, Retired] = {
    "model.head": Retired("it is now determined by objective.name."),
    "model.num_classes": Retired("it is now determined by data.labels."),
    "model.max_hidden": Retired("it is now determined by objective.noise_density."),
    "model.pair_head": Retired("set objective.next_sentence."),
    "model.scale_attention": Retired(
        "set model.attention_scale to 0 (formerly True) or 1.0 (formerly False).",
        lambda value: {"attention_scale": 0.0 if value else 1.0},
    ),
    "model.scale_embeddings": Retired(
        "set model.embedding_scale to 0 (formerly True) or 1.0 (formerly False).",
        lambda value: {"embedding_scale": 0.0 if value else 1.0},
    ),
}


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of an old config.json, with retired settings replaced or removed."""
    kept = copy.deepcopy(dict(values))
    for dotted, retired in RETIRED.items():
        name = dotted.rpartition(".")[2]
        section = kept.get(dotted.partition(".")[0])
        if isinstance(section, dict) and name in section:
            value = section.pop(name)
            for new, converted in retired.replacements(value).items():
                section.setdefault(new, converted)
    model = kept.get("model")
    if isinstance(model, dict) and model.get("pooling") == "none":  # formerly used for tagging, which does not pool
        model["pooling"] = ""
    return kept
