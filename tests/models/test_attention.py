"""Attention compared with brute force, and packed or cached documents with each document alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.models import build_model
from lm.models.transformer.attention import attention_mask, dot_product_attention
from tests.small_model import random_params, small_config

CONFIG = small_config(23, 16, num_layers=2, num_heads=4)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch, cache=None):
    return model.apply({"params": params}, batch, cache=cache)


SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 3], [1, 2, 2, 2, 2, 2, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 0, 1]])


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 2), (False, 0), (False, 3)])
def test_mask_matches_its_definition(causal, window):
    mask = attention_mask(*map(jnp.asarray, (POSITIONS, SEGMENTS, POSITIONS, SEGMENTS)), causal=causal, window=window)
    for row in range(2):
        for q in range(8):
            for k in range(8):
                allowed = SEGMENTS[row, q] == SEGMENTS[row, k] != 0
                if causal and k > q:
                    allowed = False
                if window and abs(q - k) >= window:
                    allowed = False
                assert bool(mask[row, q, k]) == allowed


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_matches_its_definition(kv_heads):
    """Recomputes attention by head and by query, over the allowed keys only."""
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(2, 8, heads, 4)).astype(np.float32) for heads in (4, kv_heads, kv_heads))
    mask = np.asarray(attention_mask(*map(jnp.asarray, (POSITIONS, SEGMENTS) * 2), causal=True, window=0))
    y = np.asarray(dot_product_attention(q, k.swapaxes(1, 2), v.swapaxes(1, 2), jnp.asarray(mask)))
    assert np.isfinite(y).all()  # also at padding, which has no allowed key
    for row, n, head in np.ndindex(2, 8, 4):
        keys = np.flatnonzero(mask[row, n])
        if len(keys):
            group = head // (4 // kv_heads)
            weights = np.exp(k[row, keys, group] @ q[row, n, head] / 2.0)  # sqrt(K) = 2
            expected = (weights / weights.sum()) @ v[row, keys, group]
            np.testing.assert_allclose(y[row, n, head], expected, atol=1e-5)


def make_batch(tokens, positions, segments):
    tokens, positions, segments = (jnp.asarray(x, jnp.int32) for x in (tokens, positions, segments))
    return Batch(tokens, tokens, jnp.ones(tokens.shape), positions, segments)


VARIANTS = [
    {},
    {"positions": "learned", "norm_position": "post"},
    {"positions": "sinusoidal", "num_kv_heads": 1, "activation": "swiglu", "norm": "rmsnorm"},
    {"window": 2, "positions": "none", "scan_layers": False, "rotary_interleaved": True},
    {"window": 2, "global_every": 2, "local_rotary_theta": 50.0},
    # Gemma 2 and 3, and OLMo 2 with the biases of Qwen 2
    {
        "norm": "rmsnorm",
        "norm_position": "sandwich",
        "norm_unit_offset": True,
        "qk_norm": "head",
        "attention_scale": 0.4,
        "attention_softcap": 2.0,
        "logits_softcap": 3.0,
        "embedding_scale": 0.0,
        "window": 2,
        "global_every": 2,
        "global_offset": 1,
    },
    {
        "norm": "rmsnorm",
        "norm_position": "branch",
        "qk_norm": "width",
        "attention_bias": "qkv",
        "scan_layers": False,
        "nope_every": 2,
        "nope_offset": 1,
    },
    {"share_layers": True, "embedding_width": 6, "positions": "learned", "window": 2, "global_every": 2},
    {"share_layers": True, "scan_layers": False, "positions": "sinusoidal", "sinusoid_offset": 2},
    {"first_norm": False, "nope_every": 2, "rope_scaling": "yarn", "rope_original_length": 4, "rope_factor": 2.0},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_packed_documents_have_the_logits_of_each_document_alone(changes):
    config = dataclasses.replace(CONFIG, **changes)
    model = build_model(config)
    params = random_params(model)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, SEGMENTS.shape)
    packed = apply(model, params, make_batch(tokens, POSITIONS, SEGMENTS)).logits
    for segment in (1, 2, 3):  # of both rows at once
        ids, real = np.zeros((2, 8), np.int32), np.zeros((2, 8), np.int32)
        segments = [np.flatnonzero(SEGMENTS[row] == segment) for row in range(2)]
        for row, indices in enumerate(segments):  # the document at the start of a row, then padding
            ids[row, : len(indices)], real[row, : len(indices)] = tokens[row, indices], 1
        alone = apply(model, params, make_batch(ids, np.broadcast_to(np.arange(8), (2, 8)), real)).logits
        for row, indices in enumerate(segments):
            np.testing.assert_allclose(packed[row, indices], alone[row, : len(indices)], atol=1e-5)


@pytest.mark.parametrize(
    "changes", [*(pytest.param(each, marks=pytest.mark.exhaustive) for each in VARIANTS[:4]), *VARIANTS[4:]]
)
def test_cached_decoding_equals_the_full_forward_at_every_position(changes):
    """Rows of 8 and 5 tokens: prompts of 3 and 2 (padded to 3), then one token at a time."""
    config = dataclasses.replace(CONFIG, **changes)
    model, lengths = build_model(config), np.array([8, 5])
    params = random_params(model)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (2, 8))
    where = np.broadcast_to(np.arange(8), (2, 8))
    full = apply(model, params, make_batch(tokens, where, (where < lengths[:, None]))).logits
    decode = functools.partial(apply, model, params)
    prompt = np.array([3, 2])[:, None]
    out = decode(make_batch(tokens[:, :3], where[:, :3], where[:, :3] < prompt), model.empty_cache(2, 8))
    np.testing.assert_allclose(out.logits[0], full[0, :3], atol=1e-5)
    np.testing.assert_allclose(out.logits[1, :2], full[1, :2], atol=1e-5)
    for step in range(5):
        at = prompt + step
        real = at < lengths[:, None]
        out = decode(make_batch(np.take_along_axis(tokens, np.minimum(at, 7), 1), np.minimum(at, 7), real), out.cache)
        for row in np.flatnonzero(real):
            np.testing.assert_allclose(out.logits[row, 0], full[row, at[row, 0]], atol=1e-5)


def test_dropout_acts_in_training_only_and_follows_its_key():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    params = random_params(build_model(config))
    batch = make_batch(np.ones((2, 8)), POSITIONS, SEGMENTS)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return build_model(config).apply({"params": params}, batch, train=train, rngs=rngs).logits

    assert np.array_equal(logits(False, 0), logits(False, 1))
    assert np.array_equal(logits(True, 0), logits(True, 0))
    assert not np.allclose(logits(True, 0), logits(True, 1))
    assert not np.allclose(logits(True, 0), logits(False, 0))


def test_bfloat16_stays_close_and_logits_and_parameters_stay_float32():
    params = random_params(build_model(CONFIG))
    batch = make_batch(np.arange(16).reshape(2, 8), POSITIONS, SEGMENTS)
    bfloat16 = dataclasses.replace(CONFIG, dtype="bfloat16", activation_dtype="compute")
    exact, rounded = (
        jax.jit(lambda p, config=config: build_model(config).apply({"params": p}, batch).logits)(params)
        for config in (CONFIG, bfloat16)
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    real = SEGMENTS > 0
    assert 0 < np.abs(np.asarray(exact - rounded))[real].max() < 0.05 * np.abs(np.asarray(exact))[real].max()
