"""Parity with Hugging Face's `transformers`: the same logits for the same weights and tokens.

`python -m benchmarks.parity --write` stores the expected logits in tests/golden/parity_*.json; these tests draw the
same weights and tokens with its functions.
"""

import json

import numpy as np
import pytest

from benchmarks.parity import (
    BUCKETS,
    CASES,
    DISTANCES,
    LENGTHS,
    TOLERANCE,
    drawn_batch,
    drawn_weights,
    golden_path,
    golden_places,
    our_buckets,
    our_logits,
)


def golden(name):
    return json.loads(golden_path(name).read_text())


@pytest.mark.parametrize("name", CASES)
def test_logits_match_the_published_model(name):
    case, expected = CASES[name], golden(name)
    assert expected["places"] == golden_places(case) and len(expected["places"]) == (4 if case.next_sentence else 12)
    logits_PV = our_logits(case)[tuple(np.transpose(expected["places"]))]
    np.testing.assert_allclose(logits_PV, expected["logits"], rtol=0, atol=TOLERANCE)
    assert np.std(expected["logits"]) > 0.5  # so the tolerance is comparatively small


def test_drawn_rows_are_long_and_varied_enough():
    """They cover most of T5's buckets, long positions and texts, padding on both sides, and both token types."""
    buckets = our_buckets(np.arange(-69, 70), True, 32, 128)
    assert len(set(buckets.tolist())) >= 28
    assert max(LENGTHS["text"]) > 64 and len(set(LENGTHS["source"])) == len(set(LENGTHS["target"])) == 4
    batch = drawn_batch(CASES["t5"].config)
    assert (batch.segments == 0).any(axis=1).sum() == 3 and (batch.source.segments == 0).any(axis=1).sum() == 3
    assert max(LENGTHS["text"]) > 10 * CASES["modernbert"].config.window
    batch = drawn_batch(CASES["bert"].config)
    for types_L, segments_L in zip(batch.types, batch.segments, strict=True):
        assert set(types_L[segments_L > 0]) == {0, 1}


@pytest.mark.parametrize("case", golden("buckets")["buckets"], ids=lambda case: str(case["setting"]))
def test_buckets_of_distances_match_the_published_ones(case):
    first, bucket = np.transpose(case["begins"])
    expected = bucket[np.searchsorted(first, DISTANCES, side="right") - 1]
    np.testing.assert_array_equal(our_buckets(DISTANCES, *case["setting"]), expected)


def test_golden_file_has_every_setting_of_buckets():
    assert [tuple(case["setting"]) for case in golden("buckets")["buckets"]] == BUCKETS


def test_weights_are_drawn_by_path():
    """An array is independent of the other arrays, and none keeps its initial ones or zeros."""
    t5, newer = (drawn_weights(CASES[name]) for name in ("t5", "t5_1_1"))
    ours, theirs = (params["decoder"]["layer_1"]["cross_attention"]["key"]["kernel"] for params in (t5, newer))
    np.testing.assert_array_equal(ours, theirs)
    bart = drawn_weights(CASES["bart"])["encoder"]["layer_0"]
    assert bart["attention_norm"]["scale"].std() > 0.1 and bart["mlp"]["up"]["bias"].std() > 0.1
