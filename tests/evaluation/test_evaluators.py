"""Evaluation against a loop over windows and tokens, over meshes, sources and parts of a split."""

import json
import math
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm.config import MeshConfig, ObjectiveConfig
from lm.data.examples.example import Example
from lm.data.packing.rows import EvalRows, RowLayout, WindowExamples
from lm.evaluation.evaluator import EvaluationSetup, choose
from lm.evaluation.row_evaluator import TokenEvaluator, forward_batch
from lm.evaluation.token_metrics import language_metrics, missing_metrics
from lm.models import build_model
from lm.parallel.mesh import make_mesh, param_shardings
from lm.tasks import TASKS
from tests.small_model import small_config

LENGTH, VOCAB = 16, 24
BOS, EOS = 1, 2
MODEL = small_config(VOCAB, LENGTH, scan_layers=False)


def store(lengths, seed=0, unknown=0, changed=0):
    """A store in memory: documents of random tokens, each with bos and eos."""
    rng = np.random.default_rng(seed)
    documents = [np.concatenate([[BOS], rng.integers(3, VOCAB, n), [EOS]]) for n in lengths]
    tokens = np.concatenate(documents).astype(np.uint16)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    counts = {
        "tokens": len(tokens),
        "documents": len(documents),
        "bytes": 3 * sum(lengths),
        "words": sum(lengths) // 2,
        "unknown": unknown,
        "changed": changed,
    }
    return types.SimpleNamespace(
        tokens=tokens, starts=starts, num_tokens=len(tokens), num_documents=len(documents), counts=counts
    )


PLAIN = ObjectiveConfig()


def window_rows(data, length, stride):
    return EvalRows(WindowExamples(data, length, stride), RowLayout(length))


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model():
    return build_model(MODEL)


@pytest.fixture(scope="module")
def boxed(model):
    """Scaled up, so that predictions depend strongly on the context."""
    return jax.jit(lambda key: jax.tree.map(lambda x: 8 * x, model.initial_params(key)))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(boxed):
    return nn.unbox(boxed)


def evaluator(model, rows, mesh=None, batch_size=4, max_rows=0, objective=PLAIN, **options):
    mesh = one_device() if mesh is None else mesh
    rows = rows if isinstance(rows, dict) else {"text": rows}
    evaluation = types.SimpleNamespace(batch_size=batch_size, max_rows=max_rows)
    config = types.SimpleNamespace(eval=evaluation, objective=objective)
    setup = EvaluationSetup(config, model, mesh, None, rows, {}, in_training=True, **options)
    return TokenEvaluator(TASKS["causal"], setup, language_metrics, missing_metrics)


def brute_force(model, params, data, stride):
    """Each token but a document's first, in a loop: its window begins at the latest multiple of the stride from
    which no later token has been scored, and reaches back as far as the window and the document do."""
    apply = jax.jit(lambda batch: jax.nn.log_softmax(model.apply({"params": params}, batch).logits))
    nll, correct, counted = 0.0, 0, 0
    for index in range(1, data.num_tokens):
        document = np.searchsorted(data.starts, index, side="right") - 1
        if data.starts[document] == index:
            continue
        windows = [s for s in range(0, data.num_tokens, stride) if s < index <= s + LENGTH]
        begin = max(min(windows), data.starts[document])
        context = data.tokens[begin:index].astype(np.int32)
        example = Example(context, np.zeros_like(context), np.zeros(len(context), np.float32))
        batch = RowLayout(LENGTH).lay_out([[example]])
        log_probabilities = np.asarray(apply(batch), np.float64)[0, len(context) - 1]
        nll -= log_probabilities[data.tokens[index]]
        correct += int(np.argmax(log_probabilities) == data.tokens[index])
        counted += 1
    return nll, correct, counted


@pytest.mark.parametrize("stride", [LENGTH, LENGTH // 2, 3, 1])
def test_metrics_equal_loop_over_tokens(model, params, stride):
    data = store([30, 1, 0, 9, 22])
    nll, correct, counted = brute_force(model, params, data, stride)
    got = evaluator(model, window_rows(data, LENGTH, stride)).evaluate(params, step=7)
    assert got["valid/tokens"] == counted == data.num_tokens - data.num_documents
    assert got["valid/loss"] == pytest.approx(nll / counted, rel=1e-5)
    assert got["valid/perplexity"] == pytest.approx(math.exp(nll / counted), rel=1e-4)
    assert got["valid/token_accuracy"] == correct / counted
    assert got["valid/bits_per_byte"] == pytest.approx(nll / math.log(2) / (3 * 62), rel=1e-5)
    assert got["valid/word_perplexity"] == pytest.approx(math.exp(nll / 31), rel=1e-4)
    assert "valid/rows" not in got


def test_stride_changes_the_loss_of_this_model(model, params):
    """Else the test above could not see a wrong window."""
    data = store([30, 1, 0, 9, 22])
    losses = [evaluator(model, window_rows(data, LENGTH, s)).evaluate(params, 0)["valid/loss"] for s in (16, 1)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(("sizes", "batch_size"), [((8, 1, 1), 3), ((2, 2, 2), 16)])
def test_metrics_do_not_depend_on_mesh_and_batch_size(model, boxed, params, sizes, batch_size):
    rows = window_rows(store([50, 40, 33, 60, 7]), LENGTH, 5)
    want = evaluator(model, rows).evaluate(params, 0)
    mesh = make_mesh(MeshConfig(*sizes))
    placed = jax.device_put(params, param_shardings(boxed, mesh))
    sharded = evaluator(model, rows, mesh, batch_size)
    got = sharded.evaluate(placed, 0)
    assert got.keys() == want.keys() and got["valid/tokens"] == want["valid/tokens"]
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-5)
    assert sharded.batch_size % (sizes[0] * sizes[1]) == 0


def test_data_sources_are_scored_apart_and_together(model, params):
    parts = {
        "a": window_rows(store([40, 3], seed=1), LENGTH, LENGTH),
        "b": window_rows(store([9], seed=2), LENGTH, LENGTH),
    }
    got = evaluator(model, parts, name="test").evaluate(params, 0)
    alone = {source: evaluator(model, rows, name="test").evaluate(params, 0) for source, rows in parts.items()}
    for source in parts:
        assert got[f"test/{source}/loss"] == pytest.approx(alone[source]["test/loss"], rel=1e-6)
    weighted = sum(each["test/loss"] * each["test/tokens"] for each in alone.values())
    assert got["test/loss"] == pytest.approx(weighted / got["test/tokens"], rel=1e-6)
    assert got["test/tokens"] == 41 + 4 + 10


def test_later_evaluations_reuse_the_compiled_forward_pass(model, params):
    rows = {name: window_rows(store([length]), LENGTH, 4) for name, length in (("a", 100), ("b", 5))}
    each = evaluator(model, rows)
    first, compiled = each.evaluate(params, 1), forward_batch._cache_size()
    assert compiled > 0 and each.evaluate(params, 2) == first
    other = each.evaluate(jax.tree.map(lambda x: x / 2, params), 3)
    assert other["valid/loss"] != first["valid/loss"] and forward_batch._cache_size() == compiled


def test_limited_rows_are_spread_over_the_split_and_reported(model, params):
    rows = window_rows(store([500]), LENGTH, LENGTH)
    seen = []
    part = evaluator(model, rows, max_rows=10)
    got = part.evaluate(params, 0, lambda done, total: seen.append((done, total)))
    assert got["valid/rows"] == part.num_rows == 10
    assert got["valid/tokens"] == 160
    per_token = got["valid/loss"] / math.log(2)
    assert got["valid/bits_per_byte"] == pytest.approx(per_token * 501 / 1500)
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert choose({"a": 100}, 4)["a"].tolist() == [0, 25, 50, 75]
    assert {k: len(v) for k, v in choose({"a": 900, "b": 99, "c": 1}, 100).items()} == {"a": 90, "b": 10, "c": 1}
    assert choose({"a": 9, "none": 0}, 3)["none"].tolist() == []
    assert len(choose({"a": 5}, 5)["a"]) == len(choose({"a": 5}, 99)["a"]) == 5


def test_missing_row_is_an_error(model, params):
    rows = window_rows(store([50]), LENGTH, LENGTH)
    rows.num_rows -= 1
    with pytest.raises(AssertionError, match="text"):
        evaluator(model, rows).evaluate(params, 0)


def test_lossy_tokenizer_is_the_reason_for_missing_metrics(model, params):
    each = evaluator(model, window_rows(store([20], unknown=2), LENGTH, LENGTH))
    assert "valid/bits_per_byte" not in each.evaluate(params, 0)
    assert "2 unknown tokens" in each.missing["bits_per_byte"]
    each = evaluator(model, window_rows(store([20, 30, 9], changed=2), LENGTH, LENGTH))
    assert not {"valid/bits_per_byte", "valid/word_perplexity"} & each.evaluate(params, 0).keys()
    reason = "the tokenizer loses text: 2 documents differ after encoding and decoding"
    assert all(reason in each.missing[name] for name in ("bits_per_byte", "word_perplexity"))
    assert evaluator(model, window_rows(store([20]), LENGTH, LENGTH)).missing == {}


def test_loss_is_the_plain_cross_entropy(model, params):
    rows = {"text": window_rows(store([50]), LENGTH, LENGTH)}
    smoothed = ObjectiveConfig(label_smoothing=0.2, z_loss=0.1)
    got = evaluator(model, rows, objective=smoothed).evaluate(params, 0)
    assert got == evaluator(model, rows).evaluate(params, 0)


def test_model_that_is_not_finite_is_scored_without_error(model, params):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), params)
    got = evaluator(model, window_rows(store([20]), LENGTH, LENGTH)).evaluate(broken, 0)
    assert math.isnan(got["valid/loss"]) and got["valid/tokens"] == 21
    json.dumps(got)
