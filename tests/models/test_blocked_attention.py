"""Attention in blocks, compared with attention as a whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from lm.batch import Batch, Source
from lm.config import MeshConfig
from lm.models import build_model
from lm.models.transformer import attention, blocked_attention
from lm.models.transformer.attention import attention_mask, dot_product_attention
from lm.models.transformer.blocked_attention import blocked, is_worth_blocks
from lm.parallel.mesh import make_mesh, on_mesh
from tests.small_model import random_params, small_config

ROWS, LENGTH, SOURCE, HEADS, SIZE = 6, 21, 13, 4, 8


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes three pieces of two rows each, with blocks of 8, 8 and 5 queries."""
    monkeypatch.setattr(blocked_attention, "BLOCK", 8)
    monkeypatch.setattr(blocked_attention, "SMALL", 0)
    monkeypatch.setattr(blocked_attention, "PIECE", 4 * 2 * HEADS * 8 * LENGTH)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def packed_mask(causal, window):
    cuts = np.random.default_rng(0).integers(1, LENGTH, (ROWS, 3))
    segments_BL = 1 + (np.arange(LENGTH)[None, :, None] >= cuts[:, None]).sum(-1)
    segments_BL[:, -2:] = 0  # padding
    starts_BL = np.maximum.accumulate(np.where(np.diff(segments_BL, prepend=-1), np.arange(LENGTH), 0), axis=1)
    positions_BL = np.arange(LENGTH) - starts_BL
    return attention_mask(*map(jnp.asarray, (positions_BL, segments_BL) * 2), causal=causal, window=window)


def value_and_gradients(function, mask_BLS, *tensors):
    """Returns the outputs of the queries that have a key, and the gradients of a function of these outputs."""

    def scalar(*tensors):
        y = function(*tensors) * jnp.any(mask_BLS, axis=-1)[:, :, None, None]
        return jnp.sum(jnp.sin(3 * y)), y

    gradients, y = jax.jit(jax.grad(scalar, argnums=tuple(range(len(tensors))), has_aux=True))(*tensors)
    return [y, *gradients]


@pytest.mark.parametrize(
    ("causal", "kv_heads", "window", "bias_rows"),
    [(True, 4, 0, 0), (True, 2, 5, 1), (False, 1, 0, ROWS), (False, 4, 3, 1)],
)
def test_blocks_give_the_values_and_gradients_of_the_whole(small_blocks, causal, kv_heads, window, bias_rows):
    q, k, v = (normal(n, ROWS, *shape, SIZE) for n, shape in enumerate([(LENGTH, HEADS), *[(kv_heads, LENGTH)] * 2]))
    tensors = [q, k, v] + ([normal(3, bias_rows, HEADS, LENGTH, LENGTH)] if bias_rows else [])
    mask, attend = packed_mask(causal, window), functools.partial(dot_product_attention, scale=0.5, softcap=4.0)

    def in_blocks(q, k, v, bias=None):
        return blocked(0.5 * q, k, v, mask, bias, causal=causal, softcap=4.0)

    actual = value_and_gradients(in_blocks, mask, *tensors)
    expected = value_and_gradients(lambda q, k, v, *bias: attend(q, k, v, mask, *bias), mask, *tensors)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_blocks_serve_a_source_of_another_length(small_blocks):
    q, k, v = (normal(n, ROWS, *shape, SIZE) for n, shape in enumerate([(LENGTH, HEADS), *[(2, SOURCE)] * 2]))
    mask = jnp.asarray(np.random.default_rng(1).random((ROWS, LENGTH, SOURCE)) < 0.6)
    actual = value_and_gradients(lambda q, k, v: blocked(q, k, v, mask), mask, q, k, v)
    expected = value_and_gradients(lambda q, k, v: dot_product_attention(q, k, v, mask, scale=1.0), mask, q, k, v)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_a_causal_block_sees_no_later_key_and_no_piece_is_larger_than_the_limit(small_blocks, monkeypatch):
    shapes, attend = [], blocked_attention._attend_block

    def watch(block, softcap):
        shapes.append((block.q.shape[0], block.q.shape[2], block.k.shape[2]))
        return attend(block, softcap)

    monkeypatch.setattr(blocked_attention, "_attend_block", watch)
    q, k = normal(0, ROWS, LENGTH, HEADS, SIZE), normal(1, ROWS, HEADS, LENGTH, SIZE)
    for rows_that_fit, rows in ((2.0, 2), (5.0, 3), (0.5, 1)):
        monkeypatch.setattr(blocked_attention, "PIECE", rows_that_fit * 4 * HEADS * 8 * LENGTH)
        shapes.clear()
        jax.eval_shape(lambda: blocked(q, k, k, packed_mask(True, 0), causal=True))
        assert set(shapes) == {(rows, 8, 8), (rows, 8, 16), (rows, 5, 21)}
    short = q[:, :5], k[:, :, :5]
    shapes.clear()
    jax.eval_shape(lambda: blocked(*short, short[1], packed_mask(True, 0)[:, :5, :5], causal=True))
    assert shapes == [(3, 5, 5)], "a row of 5 queries takes less than one of 8"


def test_queries_without_keys_have_finite_outputs_and_no_gradients(small_blocks):
    q, k, v = (normal(n, ROWS, *shape, SIZE) for n, shape in enumerate([(LENGTH, HEADS), *[(HEADS, LENGTH)] * 2]))
    mask = jnp.ones((ROWS, LENGTH, LENGTH), bool).at[:, :3].set(False)

    def total(q, k, v, first):
        y = blocked(q, k, v, mask)
        return jnp.sum(y[:, first:]), y

    whole, rest = (
        jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True), static_argnums=3)(q, k, v, first) for first in (0, 3)
    )
    assert np.all(np.isfinite(whole[1]))
    for a, b in zip(whole[0], rest[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_factors_in_bfloat16_give_values_and_gradients_close_to_those_in_float32(small_blocks, causal):
    q, k, v = (normal(n, ROWS, *shape, SIZE) for n, shape in enumerate([(LENGTH, HEADS), *[(2, LENGTH)] * 2]))
    mask = packed_mask(causal, 0)
    rounded = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    actual = value_and_gradients(lambda *x: blocked(*x, mask, causal=causal).astype(jnp.float32), mask, *rounded)
    expected = value_and_gradients(
        lambda *x: blocked(*x, mask, causal=causal), mask, *(x.astype(float) for x in rounded)
    )
    assert [x.dtype for x in actual[1:]] == [jnp.bfloat16] * 3
    for a, b in zip(actual, expected, strict=True):
        assert np.linalg.norm(a.astype(np.float32) - b) < 0.02 * np.linalg.norm(b)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary", "num_kv_heads": 2, "window": 6, "global_every": 2, "attention_softcap": 2.0},
        {"family": "encoder", "positions": "relative"},
        {"family": "encoder_decoder", "num_encoder_layers": 2, "positions": "relative", "share_embeddings": True},
    ],
)
def test_models_with_blocks_give_the_logits_and_gradients_of_plain_ones(small_blocks, changes):
    config = small_config(23, 32, num_layers=2, num_heads=4, **changes)
    plain, other = (
        build_model(dataclasses.replace(config, attention=name), platform="cpu") for name in ("xla", "auto")
    )
    assert (plain.kernel, other.kernel) == ("xla", "blocked")
    params, batch = random_params(plain), batch_for(config)
    (loss, logits), gradients = loss_and_gradients(plain, params, batch)
    (other_loss, other_logits), other_gradients = loss_and_gradients(other, params, batch)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    np.testing.assert_allclose(logits, other_logits, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients, other_gradients)


def batch_for(config):
    ids = np.random.default_rng(0).integers(0, 23, (ROWS, LENGTH)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ids.shape)
    source = Source(ids[:, ::-1], places, np.ones_like(ids)) if config.family == "encoder_decoder" else None
    return Batch(ids, ids, np.ones(ids.shape, np.float32), places, np.ones_like(ids), source)


def loss_and_gradients(model, params, batch):
    def loss(params):
        logits = model.apply({"params": params}, batch).logits
        return jnp.mean(jax.nn.log_softmax(logits)[..., 0]), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def test_decoder_in_bfloat16_rounds_the_operands_and_omits_later_keys(small_blocks, monkeypatch):
    dtypes, keys, attend = set(), set(), blocked_attention._attend_block

    def watch_operands(*operands):
        dtypes.update(x.dtype.name for x in operands[:3])
        return blocked(*operands)

    def watch_keys(block, softcap):
        keys.add(block.k.shape[2])
        return attend(block, softcap)

    monkeypatch.setattr(attention, "blocked", watch_operands)
    monkeypatch.setattr(blocked_attention, "_attend_block", watch_keys)
    config = small_config(23, 32, num_heads=4, dtype="bfloat16", activation_dtype="float32")
    model = build_model(config, platform="cpu")
    jax.eval_shape(lambda: model.apply({"params": random_params(model)}, batch_for(config)).logits)
    assert (dtypes, keys) == ({"bfloat16"}, {8, 16, 21})


@pytest.mark.parametrize(
    ("remat", "repeated"),
    [("attention_output", 0), ("attention", 0), ("dots_and_attention", 0), ("dots", 3), ("full", 3)],
)
def test_backward_pass_attends_again_only_if_the_output_was_not_kept(small_blocks, remat, repeated):
    """Attention to each of 3 blocks takes one exponential function in the forward and one in the backward pass."""

    def exponentials(remat):
        model = build_model(small_config(23, 32, num_layers=1, num_heads=4, remat=remat), platform="cpu")
        params, batch = random_params(model), batch_for(model.config)
        gradients = jax.grad(lambda params: jnp.sum(model.apply({"params": params}, batch).logits))
        jaxpr = jax.make_jaxpr(gradients)(params).jaxpr
        used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        return str(used).count(" = exp ")

    assert exponentials(remat) == exponentials("none") + repeated


def test_no_loop_over_rows_that_are_split_over_devices_or_for_small_scores(monkeypatch):
    model = build_model(small_config(23, 32, num_heads=4), platform="cpu")
    params, batch = random_params(model), batch_for(model.config)
    batch = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), batch)  # 8 rows, for 8 devices

    def count(mesh):
        with on_mesh(mesh):
            return str(jax.make_jaxpr(lambda: model.apply({"params": params}, batch).logits)()).count("scan[")

    one, eight = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(), jax.devices())
    layers = count(eight)
    assert count(one) == layers
    for limit in ("SMALL", "LARGE"):
        monkeypatch.setattr(blocked_attention, limit, 4 * 8 * 4 * LENGTH**2 - 1)
    assert (count(one), count(eight)) == (layers + 1, layers)


@pytest.mark.parametrize(
    ("rows", "length", "is_worth"),
    [(64, 64, True), (61, 64, False), (61, 512, True), (257, 64, True), (32, 64, False), (2, 1024, True)],
)
def test_blocks_are_worthwhile_for_large_scores_in_large_pieces(rows, length, is_worth):
    """61 is prime, so each row is a piece of its own. So is each of 257 rows, but their scores are large together."""
    q_BLHK, k_BGSK = jnp.zeros((rows, length, 4, 1)), jnp.zeros((rows, 4, length, 1))
    assert is_worth_blocks(q_BLHK, k_BGSK) == is_worth
