"""The step of each task gives the same numbers on one device, on a mesh and in microbatches."""

import dataclasses

import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.config import Config, defaults, source
from tests.training.test_step import ONE_DEVICE, ROWS, VOCAB, assert_same, ragged_batch, sgd_gradients
from tests.trees import flatten

LABELS = ("a", "b", "c")
# Objectives and their settings.
TASKS = {
    "masked": {"objective__next_sentence": True, "model__token_types": 2, "data__tokenizer__extra_ids": 1},
    "classification": {"data__labels": LABELS, "model__pooling": "mean", "model__pooler": True},
    "regression": {},
    "tagging": {"data__labels": LABELS},
    "span_qa": {"data__context_overlap": 2},
}
# Parameters that add the same number to all scores of a query, or of an answer's start, which a softmax ignores.
IGNORED = {"span_qa": ("key/bias", "final_norm/bias", "span/bias")}


def config_of(objective: str, **changes) -> Config:
    config = defaults()
    config.data.train.mine = source(kind="jsonl", path="mine.jsonl", **_fields(objective))
    config.data.sequence_length = 16
    config.train.update(batch_size=ROWS, num_steps=10)
    config.optimizer.update(warmup_steps=0, schedule="constant", weight_decay=0.0)
    config.objective.name = objective
    config.model.update(
        family="encoder", vocab_size=VOCAB, num_layers=2, d_model=16, num_heads=4, d_ff=32, init_std=0.2
    )
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return Config.from_dict(config.to_dict())


def _fields(objective: str) -> dict[str, str]:
    if objective == "contrastive":
        return {"target_field": "paired"}
    if objective in ("classification", "regression"):
        return {"label_field": "label"}
    return {"label_field": "tags"} if objective == "tagging" else {}


def batch_of(objective: str) -> Batch:
    """Returns the rows of `ragged_batch`, of two texts each, with targets of the task."""
    plain, rng = ragged_batch(), np.random.default_rng(1)
    pad = ((0, 0), (0, 16 - plain.shape[1]))
    names = ("tokens", "targets", "weights", "positions", "segments")
    plain = Batch(*(np.pad(getattr(plain, name), pad) for name in names))
    shape, inside = plain.shape, plain.segments > 0
    first = inside & (plain.positions == 0)
    if objective == "masked":
        weights = inside & ~first & (rng.random(shape) < 0.3)
        targets = np.where(first, rng.integers(0, 2, shape), rng.integers(0, VOCAB, shape))
        return _with(plain, targets.astype(np.int32), weights, types=rng.integers(0, 2, shape).astype(np.int32))
    if objective == "regression":
        return _with(plain, rng.normal(size=shape).astype(np.float32), first)
    if objective == "span_qa":
        last = inside & (np.roll(plain.segments, -1, axis=1) != plain.segments)
        return _with(plain, (first + 2 * last).astype(np.int32), first | last)
    weights = (first if objective == "classification" else inside) * rng.uniform(0.5, 2.0, shape)
    return _with(plain, rng.integers(0, len(LABELS), shape).astype(np.int32), weights)


def _with(batch: Batch, targets: np.ndarray, weights: np.ndarray, types: np.ndarray | None = None) -> Batch:
    return dataclasses.replace(batch, targets=targets, weights=weights.astype(np.float32), types=types)


@pytest.mark.parametrize(
    "objective",
    [name if name == "span_qa" else pytest.param(name, marks=pytest.mark.exhaustive) for name in TASKS],
)
def test_step_is_the_same_on_a_mesh_and_in_microbatches(objective):
    batch = batch_of(objective)
    one = sgd_gradients(config_of(objective, **TASKS[objective]), ONE_DEVICE, batch, drawn=True)
    assert one[0]["train/loss"] > 0.1
    for path, leaf in flatten(one[1]).items():
        assert path.endswith(IGNORED.get(objective, "key/bias")) or np.abs(leaf).max() > 1e-4, path
    mesh_shape = {"data": 2, "fsdp": 2, "tensor": 2}
    both = config_of(objective, train__accumulation=2, **TASKS[objective])
    assert_same(sgd_gradients(both, mesh_shape, batch, drawn=True), one)


@pytest.mark.exhaustive
def test_contrastive_step_is_the_same_on_a_mesh():
    config = config_of("contrastive", model__pooling="mean")
    plain = batch_of("tagging")
    alone = np.minimum(plain.segments, 1) * (np.cumsum(plain.segments != 1, axis=1) == 0)
    weights = np.zeros(plain.shape, np.float32)
    weights[:, 0] = alone[:, 0]
    paired = Source(np.roll(plain.tokens, 3, axis=1), plain.positions * alone, alone)
    batch = dataclasses.replace(
        plain, weights=weights, segments=alone, positions=plain.positions * alone, source=paired
    )
    one = sgd_gradients(config, ONE_DEVICE, batch, drawn=True)
    assert_same(sgd_gradients(config, {"data": 4, "fsdp": 2, "tensor": 1}, batch, drawn=True), one)
