"""Stateful windows (data.stateful): their rows, loss and gradients, on every mesh, continued and evaluated."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.data.packing.prefetch import GlobalBatches
from lm.data.packing.rows import RowLayout
from lm.data.packing.stateful import StatefulEvalRows, StatefulRows
from lm.errors import UserError
from lm.models import build_model
from lm.objectives.losses import loss_sums
from lm.parallel.mesh import batch_sharding, make_mesh
from lm.runs.directory import RunDirectory
from lm.runs.prepare import prepare
from lm.tasks import task_of
from lm.training.state import abstract_state, make_state
from lm.training.step import compile_train_step, with_finite_rows
from tests.run_helpers import assert_same_run, config_of, train_here
from tests.test_recurrent_runs import RECURRENT, SHORT
from tests.training.test_step import LENGTH, ROWS, VOCAB, config_with

STATEFUL = RECURRENT | {"data__stateful": True}
CARRIED = STATEFUL | SHORT | {"train__batch_size": 8, "data__sequence_length": 8, "optimizer__ema_decay": 0.9}


def store_of(lengths: list[int]) -> SimpleNamespace:
    """Returns a store whose token at index i of the stream is i."""
    starts = np.cumsum([0, *lengths[:-1]])
    counts = {"documents": len(lengths), "bytes": 1, "words": 1, "unknown": 0, "changed": 0}
    total = sum(lengths)
    return SimpleNamespace(
        tokens=np.arange(total), starts=starts, num_tokens=total, num_documents=len(lengths), counts=counts
    )


# --- rows --------------------------------------------------------------------------------------------------------


def test_each_row_continues_in_the_next_batch_and_an_epoch_reads_no_token_twice():
    store = store_of([9, 1, 14, 30, 7])  # 61 tokens
    rows, layout = StatefulRows("a", store, 3, 4, 5), RowLayout(4)
    assert rows.num_rows(0) == 15
    for epoch in range(6):
        batches = [layout.lay_out([rows.row(epoch, 5 * t + r) for r in range(5)]) for t in range(3)]
        tokens = np.concatenate([each.tokens for each in batches], axis=1)
        assert len({*tokens.flat}) == 60, "one token of this epoch is left out"
        np.testing.assert_array_equal((tokens[:, 1:] - tokens[:, :-1]) % 61, 1)
        is_start = np.isin(tokens, store.starts)
        is_start[:, 0] = True  # of a stretch
        positions = np.concatenate([each.positions for each in batches], axis=1)
        for row in range(5):
            since = [i for i in range(12) if is_start[row, i]]
            expected = [i - max(each for each in since if each <= i) for i in range(12)]
            np.testing.assert_array_equal(positions[row], expected)
        targets, weights = (
            np.concatenate([getattr(each, name) for each in batches], 1) for name in ("targets", "weights")
        )
        ends = np.isin(tokens + 1, [*store.starts, 61])
        np.testing.assert_array_equal(weights, ~ends)
        np.testing.assert_array_equal(targets, np.where(ends, 0, tokens + 1))
    first = [rows.row(epoch, 0)[0].tokens_T[0] for epoch in range(6)]
    assert len({*first}) > 3, "each epoch has its own offset"
    assert [rows.locate(i) for i in (0, 14, 15, 47)] == [(0, 0), (0, 14), (1, 0), (3, 2)]


@pytest.mark.parametrize("stretches", [1, 3, 7])
def test_an_evaluation_scores_each_target_once(stretches):
    store = store_of([9, 1, 14, 30, 7])
    rows = StatefulEvalRows(store, 4, stretches, RowLayout(4))
    batch = rows.rows(range(rows.num_rows + 2))
    np.testing.assert_array_equal(np.sort(batch.targets[batch.weights > 0]), np.setdiff1d(np.arange(61), store.starts))
    assert rows.totals["targets"] == batch.weights.sum() == 56
    np.testing.assert_array_equal(np.sort(batch.tokens[batch.segments > 0]), np.arange(61))


# --- loss and gradients ------------------------------------------------------------------------------------------


def long_rows(length: int) -> Batch:
    """Returns rows of one or more documents, which begin anywhere; the first one begins at column 0."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, VOCAB, (ROWS, length + 1)).astype(np.int32)
    starts = random.random((ROWS, length)) < 0.1
    starts[:, 0] = True
    column = np.broadcast_to(np.arange(length), starts.shape)
    positions = (column - np.maximum.accumulate(np.where(starts, column, 0), axis=1)).astype(np.int32)
    segments = np.cumsum(starts, axis=1).astype(np.int32)
    weights = random.random((ROWS, length)).astype(np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, positions=positions, segments=segments)


def window_of(batch: Batch, number: int) -> Batch:
    """Cuts window `number` out of long rows. Its segments are numbered from 1, as in any batch."""
    window = jax.tree.map(lambda x: x[:, number * LENGTH : (number + 1) * LENGTH], batch)
    return window.replace(segments=window.segments - window.segments[:, :1] + 1)


def steps_of(config, mesh_shape, batches):
    """Takes one step per batch of plain SGD with rate 1. Returns the losses, gradients and carried states."""
    count = int(np.prod(list(mesh_shape.values())))
    mesh = make_mesh(dataclasses.replace(config.mesh, **mesh_shape), jax.devices()[:count])
    model, optimizer = build_model(config.model, task_of(config).head(config)), optax.sgd(1.0)
    abstract = abstract_state(config, model, optimizer, mesh)
    state = make_state(config, model, optimizer, abstract, mesh)
    step, sharding = compile_train_step(config, model, optimizer, abstract, mesh), batch_sharding(mesh)
    found = []
    for batch in batches:
        before = jax.tree.map(np.asarray, state.params)
        state, metrics = step(state, GlobalBatches(mesh, ROWS).place(batch))
        gradients = jax.tree.map(lambda old, new: old - np.asarray(new), before, state.params)
        found.append((float(metrics["train/loss"]), gradients, jax.tree.map(np.asarray, state.carried.states)))
        placed = state.carried.states[0]["h"].sharding
        assert placed.is_equivalent_to(sharding, 2), "rows stay on their device"
    return found


ONE = {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.exhaustive)])
def test_windows_have_the_loss_of_one_long_row_and_gradients_that_end_at_the_window(cell):
    config = config_with(**STATEFUL, model__cell=cell, optimizer__weight_decay=0.0)
    model, batch = build_model(config.model), long_rows(3 * LENGTH)
    params = jax.jit(lambda key: nn.unbox(model.initial_params(key)))(jax.random.key(0))
    apply = jax.jit(partial(model.apply), static_argnames="train")
    expected = apply({"params": params}, batch).logits
    cache = model.empty_cache(ROWS, LENGTH)
    for number in range(3):
        output = apply({"params": params}, window_of(batch, number), cache=cache)
        np.testing.assert_allclose(output.logits, expected[:, number * LENGTH :][:, :LENGTH], atol=1e-5)
        cache = output.cache

    def long_loss(params, frozen):
        """The loss of the second window in one long row, in which the first window has frozen parameters."""
        both = jax.tree.map(lambda x: x[:, : 2 * LENGTH], batch)
        first, second = (window_of(both, number) for number in range(2))
        states = model.apply({"params": frozen}, first, cache=model.empty_cache(ROWS, LENGTH)).cache
        sums = loss_sums(model.apply({"params": params}, second, cache=states).logits, second, config.objective)
        return sums.loss / sums.weight

    (first, second) = steps_of(config, ONE, [window_of(batch, number) for number in range(2)])
    # The second step of the run has other parameters than the first, so its state comes from the first parameters.
    before = jax.tree.map(np.asarray, make_first(config).params)
    after = jax.tree.map(lambda old, gradient: old - gradient, before, first[1])
    loss, gradients = jax.jit(jax.value_and_grad(long_loss))(after, before)
    assert second[0] == pytest.approx(float(loss), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), second[1], gradients)
    untruncated = jax.jit(jax.grad(lambda params: long_loss(params, params)))(after)["layer_0"]["forward"]["recurrent"]
    assert np.abs(untruncated["kernel"] - gradients["layer_0"]["forward"]["recurrent"]["kernel"]).max() > 1e-4


def make_first(config):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model, optimizer = build_model(config.model), optax.sgd(1.0)
    return make_state(config, model, optimizer, abstract_state(config, model, optimizer, mesh), mesh)


@pytest.mark.parametrize(("shape", "accumulation"), [((2, 2, 2), 1), ((2, 1, 1), 4)])
def test_meshes_and_microbatches_carry_the_states_of_one_device(shape, accumulation):
    batches = [window_of(long_rows(2 * LENGTH), number) for number in range(2)]
    config = config_with(**STATEFUL)
    expected = steps_of(config, ONE, batches)
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    found = steps_of(config_with(**STATEFUL, train__accumulation=accumulation), sizes, batches)
    for one, other in zip(expected, found, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), one, other)


def test_after_a_skipped_step_rows_continue_from_its_window_if_their_states_are_finite():
    config = config_with(**STATEFUL, optimizer__weight_decay=0.0)
    first, second = (window_of(long_rows(2 * LENGTH), number) for number in range(2))
    good = steps_of(config, ONE, [first, second])
    nan = first.weights * np.float32(np.nan)
    (_, gradients, carried), _ = steps_of(config, ONE, [first.replace(weights=nan), second])
    assert not any(np.any(each) for each in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, carried, good[0][2])
    broken = ({"h": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "c": jnp.array([[5.0, jnp.inf], [6.0, 7.0]])},)
    (found,) = with_finite_rows(broken)
    np.testing.assert_array_equal(found["h"], [[0, 0], [3, 4]])
    np.testing.assert_array_equal(found["c"], [[0, 0], [6, 7]])


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_stopped_run_continues_to_the_bit_with_its_states(tiny, tmp_path):
    assert train_here(tiny, tmp_path / "straight", **CARRIED) == 0
    assert train_here(tiny, tmp_path / "halves", **CARRIED | {"train__num_steps": 4}) == 0
    assert train_here(tiny, tmp_path / "halves", **CARRIED) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")
    with pytest.raises(UserError, match=r"holds a run with another config \(eval.batch_size: 8 -> 16\)"):
        train_here(tiny, tmp_path / "halves", **CARRIED | {"eval__batch_size": 16})


def test_evaluation_carries_the_state_on_any_mesh(tiny, tmp_path, call):
    """With one stretch, the loss is that of the whole text in one row; with more, some tokens have less context."""
    changes = CARRIED | {"data__train__text__document": "file", "data__holdout": "tail", "eval__max_rows": 16}
    assert train_here(tiny, tmp_path / "run", **changes) == 0
    losses = []
    for stretches in (1, 3):
        outcome = call("eval.py", f"--workdir={tmp_path / 'run'}", "--step=8", f"--batch_size={stretches}")
        assert outcome.status == 0, outcome.stderr
        found = json.loads((tmp_path / f"run/eval/8/results-stretches{stretches}.json").read_text())
        assert f"along each of {stretches} stretches" in found["signatures"]["context"]
        losses.append(found["metrics"]["loss"])
    run = RunDirectory.existing(tmp_path / "run")
    config = run.load_config()
    store = prepare(config, run.root).stores["valid"]["text"]
    tokens = np.array(store.tokens, np.int32)[None]
    assert store.num_documents == 1 and tokens.shape[1] > 300
    with run.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params(None, 8, ema=True)
    ones = np.ones_like(tokens[:, 1:])
    batch = Batch(
        tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), positions=np.cumsum(ones, 1) - 1, segments=ones
    )
    logits = jax.jit(build_model(config.model).apply)({"params": params}, batch).logits
    sums = loss_sums(logits, batch, config.objective)
    assert losses[0] == pytest.approx(float(sums.nll / sums.weight), abs=1e-5)
    assert losses[1] == pytest.approx(losses[0], abs=0.05) and abs(losses[1] - losses[0]) > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__stateful": True}, "config.data.stateful: this setting is not read by model.architecture=transformer"),
        (STATEFUL | {"model__family": "encoder", "objective__name": "masked"}, "config.data.stateful: this setting is"),
        (STATEFUL | {"eval__stride": 3}, "config.eval.stride: with data.stateful, windows are consecutive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_with(**changes)


def test_several_data_sources_and_too_little_text_are_refused(tiny, tmp_path):
    config = config_of(tiny, **CARRIED).to_dict()
    config["data"]["train"]["other"] = config["data"]["train"]["text"]
    with pytest.raises(UserError, match="rows continue within one data source"):
        type(config_of(tiny)).from_dict(config)
    with pytest.raises(UserError, match="the rows of one step need 32768"):
        train_here(tiny, tmp_path / "run", **CARRIED | {"train__batch_size": 4096})
