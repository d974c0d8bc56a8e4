"""The buckets of distances of T5's relative positions, against stored ones of `transformers` (or, if the environment
variable UPDATE_GOLDEN is set, against the buckets that it computes now, which are then stored)."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lm.models.transformer.positions import distance_buckets

GOLDEN = Path(__file__).parents[1] / "golden" / "distance_buckets.json"
DISTANCES = np.arange(-300, 301)  # key position minus query position
# (bidirectional, num_buckets, max_distance): T5's two settings and others, some with integer bucket boundaries.
SETTINGS = [
    (both, *sizes)
    for both in (False, True)
    for sizes in ((32, 128), (16, 64), (64, 256), (8, 20), (48, 100), (30, 127), (32, 1024))
]


def our_buckets(bidirectional, num_buckets, max_distance):
    """Returns the buckets that `lm.models.transformer.positions.RelativeBias` looks up."""
    one_sided = num_buckets // 2 if bidirectional else num_buckets
    behind = np.abs(DISTANCES) if bidirectional else np.maximum(-DISTANCES, 0)
    buckets = distance_buckets(one_sided, max_distance)[np.minimum(behind, max_distance)]
    return buckets + one_sided * (DISTANCES > 0) * bidirectional


@pytest.fixture(scope="module", autouse=True)
def update():
    if not os.environ.get("UPDATE_GOLDEN"):
        return
    torch, t5 = pytest.importorskip("torch"), pytest.importorskip("transformers.models.t5.modeling_t5")
    cases = []
    for setting in SETTINGS:
        buckets = t5.T5Attention._relative_position_bucket(torch.tensor(DISTANCES), *setting).tolist()
        begins = [n for n in range(len(buckets)) if n == 0 or buckets[n] != buckets[n - 1]]
        cases.append({"setting": setting, "begins": [[int(DISTANCES[n]), buckets[n]] for n in begins]})
    rows = ",\n".join(map(json.dumps, cases))
    GOLDEN.write_text(f'{{\n"buckets": [\n{rows}\n]\n}}\n')


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_buckets_of_distances_match_the_published_ones(setting):
    stored = {tuple(case["setting"]): case["begins"] for case in json.loads(GOLDEN.read_text())["buckets"]}
    first, bucket = np.transpose(stored[setting])  # each run of equal buckets begins at a distance
    expected = bucket[np.searchsorted(first, DISTANCES, side="right") - 1]
    np.testing.assert_array_equal(our_buckets(*setting), expected)
