"""Settings that no longer exist. A run directory that has them is read without them; elsewhere they are refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Dotted name -> what to do instead; completes "is no longer a setting; ...".
RETIRED = {
    "model.head": "it follows from objective.name.",
    "model.num_classes": "it follows from data.labels.",
    "model.max_hidden": "it follows from objective.noise_density.",
    "model.pair_head": "set objective.next_sentence.",
}


def migrated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested settings of an old config.json without those that are retired."""
    kept = copy.deepcopy(dict(values))
    for dotted in RETIRED:
        section, _, name = dotted.partition(".")
        if isinstance(kept.get(section), dict):
            kept[section].pop(name, None)
    model = kept.get("model")
    if isinstance(model, dict) and model.get("pooling") == "none":  # of tagging, which does not pool
        model["pooling"] = ""
    return kept
