"""Recurrent models: PyTorch's values, gradients, packing, padding, caching, dropout and costs."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.recurrent_parity import CASES, TOLERANCE, differences, golden_path
from lm.batch import Batch, Source
from lm.config import ModelConfig, ObjectiveConfig
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.sampling import Vocabulary
from lm.models import build_model
from lm.models.heads import Classes, TextEmbedding
from lm.models.parameters import count_parameters
from lm.models.recurrent.cells import CELLS, CellStep
from lm.models.recurrent.recurrence import Steps, recur
from lm.objectives.losses import loss_sums
from tests.small_model import random_params

V, D = 19, 8
BASE = ModelConfig(architecture="recurrent", vocab_size=V, max_length=24, num_layers=2, d_model=D, embedding_width=6)
TWO_SIDED = dataclasses.replace(BASE, family="encoder_decoder", num_encoder_layers=1)
DECODERS = {
    "rnn": dataclasses.replace(BASE, cell="rnn"),
    "lstm": dataclasses.replace(BASE, cell_norm=True, output_bias=True),
    "gru": dataclasses.replace(BASE, cell="gru", cell_norm=True, tie_embeddings=False, embedding_width=0),
}
PAIRS = {
    "none": dataclasses.replace(TWO_SIDED, source_attention="none"),
    "dot": dataclasses.replace(TWO_SIDED, source_attention="dot", cell="gru", num_encoder_layers=3),
    "general": dataclasses.replace(
        TWO_SIDED, source_attention="general", cell="rnn", share_embeddings=False, source_vocab_size=23
    ),
    "additive": dataclasses.replace(TWO_SIDED, cell_norm=True),
}
ALL = {**DECODERS, **PAIRS}
# The names of all models; tests of most are marked as exhaustive.
NAMES = [name if name in ("lstm", "additive") else pytest.param(name, marks=pytest.mark.exhaustive) for name in ALL]


@functools.cache
def model_and_params(name):
    model = build_model(ALL[name])
    return model, random_params(model, deviation=0.5, scale=1.0)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch, cache=None):
    return model.apply({"params": params}, batch, cache=cache)


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(4, V, shape).astype(np.int32)


def side(texts, length):
    """Returns the tokens, positions and segments of a row that holds the texts one after the other."""
    tokens, positions, segments = np.zeros((3, length), np.int32)
    start = 0
    for number, text in enumerate(texts, start=1):
        row = slice(start, start := start + len(text))
        tokens[row], positions[row], segments[row] = text, np.arange(len(text)), number
    return tokens, positions, segments


def batch_of(rows, length, source_rows=None, source_length=0):
    """Returns a batch in which each row holds several texts. The target of each token is the next one in the row."""
    tokens, positions, segments = map(np.stack, zip(*(side(texts, length) for texts in rows), strict=True))
    source = None
    if source_rows:
        source = Source(*map(np.stack, zip(*(side(texts, source_length) for texts in source_rows), strict=True)))
    weights = (segments > 0).astype(np.float32)
    return Batch(tokens, (tokens + 1) % V, weights, positions=positions, segments=segments, source=source)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params, batch):
    def loss(params):
        sums = loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig())
        return sums.loss / sums.weight

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize(("cell", "bidirectional"), CASES)
def test_outputs_and_gradients_match_pytorch(cell, bidirectional):
    golden = json.loads(golden_path(cell, bidirectional).read_text())
    gradients = {name: np.array(value, np.float32) for name, value in golden["gradients"].items()}
    found = differences(cell, bidirectional, np.array(golden["outputs"]), gradients)
    assert max(found) < TOLERANCE and np.abs(golden["outputs"]).max() > 0.1


@pytest.mark.parametrize("norm", ["", "layernorm"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_of_a_recurrence_matches_automatic_differentiation(cell, norm):
    """Texts start anywhere, with states of their own; padding leaves the state unchanged."""
    random, (L, B, H) = np.random.default_rng(0), (6, 3, 4)
    kind, step = CELLS[cell], CellStep(cell, norm, 1e-5)

    def draw(*shape):
        return random.normal(0, 0.7, shape).astype(np.float32)

    weights = {"candidate/bias": draw(H), "recurrent_norm/scale": draw(kind.gates * H), "state_norm/scale": draw(H)}
    kernel, x, mask = draw(H, kind.gates * H), draw(L, B, kind.gates * H), draw(B, H)
    starts, is_text = random.random((L, B)) < 0.4, random.random((L, B)) < 0.7
    initial, state = ({name: draw(*shape) for name in kind.states} for shape in ((L, B, H), (B, H)))
    factors = draw(L, B, H)

    def by_hand(weights, kernel, x, initial, state):
        total = 0.0
        for t in range(L):
            begins = (starts[t] & is_text[t])[:, None]
            before = {name: jnp.where(begins, initial[name][t], state[name]) for name in state}
            new = step(weights, x[t], (before["h"] * mask) @ kernel, before)
            state = {name: jnp.where(is_text[t][:, None], new[name], state[name]) for name in state}
            total += sum(jnp.sum(factors[t] * each) for each in state.values())
        return total + sum(jnp.sum(jnp.sin(each)) for each in state.values())

    def ours(weights, kernel, x, initial, state):
        states, last = recur(step, "float32", weights, kernel, mask, Steps(x, starts, is_text, initial), state)
        return sum(jnp.sum(factors * each) for each in states.values()) + sum(
            jnp.sum(jnp.sin(each)) for each in last.values()
        )

    arguments = weights, kernel, x, initial, state
    expected, found = (
        jax.jit(jax.value_and_grad(function, argnums=tuple(range(5))))(*arguments) for function in (by_hand, ours)
    )
    jax.tree.map(lambda e, f: np.testing.assert_allclose(f, e, atol=2e-4, rtol=2e-4), expected, found)


@pytest.mark.parametrize("name", NAMES)
def test_packed_texts_have_the_loss_and_gradients_of_separate_texts(name):
    model, params = model_and_params(name)
    a, b, c = (random_tokens(length, seed=length) for length in (5, 3, 4))
    x, y, z = (random_tokens(length, seed=length) for length in (6, 2, 5))
    pairs = name in PAIRS
    packed = batch_of([[a, b], [c]], 9, [[x, y], [z]] if pairs else None, 10)
    apart = batch_of([[b], [c], [a]], 7, [[y], [z], [x]] if pairs else None, 6)
    expected, found = loss_and_gradients(model, params, apart), loss_and_gradients(model, params, packed)
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=1e-5)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-5, rtol=1e-4), found[1], expected[1])


@pytest.mark.parametrize("name", NAMES)
def test_cached_decoding_matches_the_full_forward_at_every_step(name):
    """Also if padding comes first, if rows share a source, and if rows are reordered on the way."""
    model, params = model_and_params(name)
    texts, sources = random_tokens(4, 7), [random_tokens(4, seed=1), random_tokens(6, seed=2)]
    pairs = name in PAIRS
    four = [[sources[0]], [sources[0]], [sources[1]], [sources[1]]]
    full = apply(model, params, batch_of([[text] for text in texts], 7, four if pairs else None, 6)).logits
    ones = np.ones((4, 1), np.int32)
    nothing = Batch(0 * ones, 0 * ones, 0.0 * ones, positions=0 * ones, segments=0 * ones)
    cache = model.empty_cache(4, 7)
    if pairs:
        cache = model.empty_cache(2, 7, 6)
        two = batch_of([[], []], 1, [[each] for each in sources], 6)
        cache = apply(model, params, two, cache).cache.repeat_rows(2)
    order = np.arange(4)
    for t in range(7):
        cache = apply(model, params, nothing, cache).cache  # padding changes nothing
        token = texts[order, t : t + 1]
        output = apply(model, params, Batch(token, token, 1.0 * ones, positions=ones * t, segments=ones), cache)
        np.testing.assert_allclose(output.logits[:, 0], full[order, t], atol=2e-5)
        swap = np.array([1, 0, 3, 3] if t == 3 else [1, 0, 2, 3])
        cache, order = output.cache.take_rows(swap), order[swap]


@pytest.mark.parametrize("name", ["additive", "none"])
def test_beam_search_finds_the_best_of_all_outputs(name):
    model, params = model_and_params(name)
    vocabulary = Vocabulary(size=5, bos_id=1, eos_id=2, pad_id=0)
    source = random_tokens(5).tolist()
    settings = BeamSettings(num_beams=200, max_new_tokens=3, length_penalty=0.7, num_hypotheses=3)
    found = beam_search(model, params, [source], settings, vocabulary)[0]
    outputs = [[2]] + [[a, 2] for a in (0, 3, 4)]
    outputs += [[a, b, c] for a in (0, 3, 4) for b in (0, 3, 4) for c in (0, 2, 3, 4)]
    rows = [[np.array([1, *each[:-1]])] for each in outputs]
    batch = batch_of(rows, 3, [[source]] * len(rows), 5)
    log_probs = jax.nn.log_softmax(apply(model, params, batch).logits)
    scores = {
        tuple(each): float(sum(log_probs[row, t, token] for t, token in enumerate(each))) / len(each) ** 0.7
        for row, each in enumerate(outputs)
    }
    best = sorted(scores, key=scores.get, reverse=True)[:3]
    assert [tuple(each.tokens) for each in found] == best
    assert [each.score for each in found] == pytest.approx([scores[each] for each in best], abs=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_an_encoder_reads_all_of_a_text_and_nothing_else(cell):
    config = dataclasses.replace(BASE, family="encoder", cell=cell)
    model = build_model(config, Classes(3, "first"))
    params = random_params(model, 0.5)
    a, b = random_tokens(4), random_tokens(5, seed=1)
    together = apply(model, params, batch_of([[a, b]], 11)).logits[0]
    np.testing.assert_allclose(apply(model, params, batch_of([[a]], 4)).logits[0], together[:4], atol=1e-5)
    np.testing.assert_allclose(apply(model, params, batch_of([[b]], 8)).logits[0, :5], together[4:9], atol=1e-5)
    changed = np.append(b[:-1], (b[-1] + 1) % V)
    other = apply(model, params, batch_of([[a, changed]], 11)).logits[0]
    assert np.all(np.abs(other - together)[4:9].max(axis=1) > 1e-4) and np.array_equal(other[:4], together[:4])


def test_paired_texts_are_read_by_the_same_parameters():
    model = build_model(dataclasses.replace(BASE, family="encoder"), TextEmbedding("mean"))
    params, (a, b) = random_params(model, 0.5), (random_tokens(5), random_tokens(5, seed=1))
    output = apply(model, params, batch_of([[a], [b]], 5, [[b], [a]], 5))
    np.testing.assert_allclose(output.embedding, output.paired_embedding[::-1], atol=1e-6)


def product_flops(jaxpr):
    """Counts the FLOPs of all matrix multiplications of a program, those of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * int(inner) * int(np.prod(equation.outvars[0].aval.shape))
        for each in (value for value in equation.params.values() if hasattr(value, "eqns")):
            total += product_flops(getattr(each, "jaxpr", each)) * equation.params.get("length", 1)
    return total


@pytest.mark.parametrize("name", ALL)
def test_costs_and_logical_axes_of_the_parameters(name):
    model, params = model_and_params(name)
    assert model.parameter_counts().total == count_parameters(params)
    boxed = jax.eval_shape(lambda: model.initial_params(jax.random.key(0)))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert len(leaf.names) == leaf.value.ndim
    batch = batch_of([[random_tokens(3)]], 3, [[random_tokens(5)]] if name in PAIRS else None, 5)
    jaxpr = jax.make_jaxpr(lambda params: model.apply({"params": params}, batch).logits)(params)
    assert model.flops_per_row(3, 5).forward == product_flops(jaxpr.jaxpr)
    assert model.activation_bytes(4, 4, 1) > 4 * 4 * D


def test_initial_values_are_those_of_the_papers():
    config = dataclasses.replace(BASE, d_model=32, embedding_width=0, init_std=0.0)
    layer = nn.unbox(build_model(config).initial_params(jax.random.key(0)))["layer_1"]["forward"]
    for gate in np.split(np.asarray(layer["recurrent"]["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(32), atol=1e-5)
    np.testing.assert_array_equal(layer["gates"]["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 32))
    assert np.std(layer["input"]["kernel"]) == pytest.approx(32**-0.5, rel=0.05)


def dropout_batch():
    return batch_of([[random_tokens(6)], [random_tokens(6, seed=1)]], 6)


def test_recurrent_dropout_acts_in_training_only():
    for of in ("weights", "outputs"):
        config = dataclasses.replace(BASE, recurrent_dropout=0.5, recurrent_dropout_of=of)
        model = build_model(config)
        params, batch = random_params(model, 0.5), dropout_batch()
        plain = build_model(BASE).apply({"params": params}, batch).logits
        np.testing.assert_array_equal(model.apply({"params": params}, batch).logits, plain)
        keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
        one, same, other = (model.apply({"params": params}, batch, train=True, rngs=each).logits for each in keys)
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 1e-3
        np.testing.assert_allclose(one[:, 0], plain[:, 0], atol=1e-6)  # the first token has no previous output


@pytest.mark.parametrize("locked", [True, False])
def test_a_locked_mask_drops_the_same_features_of_all_tokens(locked):
    """With one layer of an RNN whose weights are 0 except those of the output, all tokens have the same logits."""
    config = dataclasses.replace(BASE, num_layers=1, cell="rnn", dropout=0.5, locked_dropout=locked)
    model = build_model(config)
    params = random_params(model, 0.5)
    for name in ("input", "recurrent"):
        params["layer_0"]["forward"][name]["kernel"] *= 0
    batch = dropout_batch()
    found = model.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)}).logits
    # The head drops features of its own at each token only if it has dropout, which the next-token head has not.
    same = np.abs(found - found[:, :1]).max() < 1e-6
    assert same == locked
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_layers_of_vectors_start_with_the_embedding_and_end_with_the_input_of_the_head():
    model, params = model_and_params("additive")
    batch = batch_of([[random_tokens(4)]], 4)
    table = params["token_embedding"]["embedding"]
    np.testing.assert_array_equal(model.token_vectors({"params": params}, batch, 0), table[batch.tokens])
    last = model.token_vectors({"params": params}, batch, model.text_layers)
    assert last.shape == (1, 4, D) and model.text_layers == 1
    encoder = build_model(dataclasses.replace(BASE, family="encoder", num_layers=1, cell_norm=True), Classes(3, "last"))
    rest = {**params["encoder"], "token_embedding": params["token_embedding"]}
    classifier = {"kernel": np.eye(D, 3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    logits = apply(encoder, {**rest, "classifier": classifier}, batch).logits
    np.testing.assert_allclose(logits, last[..., :3], atol=1e-6)


def test_bfloat16_stays_close():
    model, params = model_and_params("lstm")
    batch = batch_of([[random_tokens(9)]], 9)
    low = build_model(dataclasses.replace(model.config, dtype="bfloat16"))
    exact, found = (apply(each, params, batch).logits for each in (model, low))
    assert found.dtype == jnp.float32
    assert 0 < np.abs(exact - found).max() < 0.3
