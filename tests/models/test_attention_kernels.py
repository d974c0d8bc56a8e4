"""The fused attention kernels compared with our own attention, and the choice between them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import MeshConfig
from lm.errors import UserError
from lm.models import build_model
from lm.models.heads import NextToken
from lm.models.transformer import attention_kernels
from lm.models.transformer.attention import attention_mask, dot_product_attention
from lm.models.transformer.wiring import Decoder
from lm.parallel.mesh import make_mesh, on_mesh
from tests.small_model import random_params, small_config

LENGTH = 128


def packed_rows(rows=2):
    """Returns segments and positions of rows with documents of various lengths; the first row ends with padding."""
    segments_BL, positions_BL = np.zeros((2, rows, LENGTH), np.int32)
    for row in range(rows):
        cuts = np.cumsum([17 + 5 * row, 40, 3, 1])
        segments_BL[row] = 1 + np.searchsorted(cuts, np.arange(LENGTH), side="right")
        positions_BL[row] = np.arange(LENGTH) - np.concatenate([[0], cuts])[segments_BL[row] - 1]
    segments_BL[0, -20:] = 0
    return jnp.asarray(segments_BL), jnp.asarray(positions_BL)


def query_key_value(heads, kv_heads, rows=2, size=16):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, LENGTH, count, size) for count in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def ours(q, k, v, segments, positions, window, **settings):
    mask = attention_mask(positions, segments, positions, segments, causal=True, window=window)
    return dot_product_attention(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask, **settings)


def values_and_gradients(function, inputs, segments):
    """Returns outputs, and gradients of their sum with a different weight for each output that is not padding."""

    def scalar(*inputs):
        y = function(*inputs) * (segments > 0)[:, :, None, None]
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return [y, *gradients]


def assert_same(actual, expected, tolerance=2e-5):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, 0), (2, 2, 9)])
def test_splash_matches_our_attention(heads, kv_heads, window):
    segments, positions = packed_rows()
    inputs = query_key_value(heads, kv_heads)
    actual = values_and_gradients(
        lambda q, k, v: attention_kernels.splash(q, k, v, segments, window, interpret=True), inputs, segments
    )
    expected = values_and_gradients(lambda q, k, v: ours(q, k, v, segments, positions, window), inputs, segments)
    assert_same(actual, expected)


@pytest.mark.parametrize(("kv_heads", "split_kv"), [(2, True), (2, False)])
def test_splash_on_a_mesh_matches_one_device(kv_heads, split_kv):
    segments, positions = packed_rows(4)
    inputs = query_key_value(4, kv_heads, rows=4)
    expected = ours(*inputs, segments, positions, 0) * (segments > 0)[:, :, None, None]
    splash = jax.jit(lambda q, k, v: attention_kernels.splash(q, k, v, segments, 0, interpret=True))
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        if split_kv:
            actual = splash(*inputs)
        else:  # sharding rules that do not split key heads
            with nn.logical_axis_rules((("batch", ("data", "fsdp")), ("heads", "tensor"))):
                actual = splash(*inputs)
    assert len(actual.sharding.device_set) == 8
    assert actual.sharding.shard_shape(actual.shape) == (1, LENGTH, 2, 16)
    np.testing.assert_allclose(actual * (segments > 0)[:, :, None, None], expected, atol=2e-5)


@pytest.fixture
def without_cudnn(monkeypatch):
    """Replaces cuDNN with XLA's matrix multiplications."""
    attention = jax.nn.dot_product_attention

    def by_xla(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return attention(*args, **kwargs, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)


@pytest.mark.parametrize(("heads", "kv_heads", "window", "scale"), [(4, 2, 0, 0.0), (4, 1, 9, 0.7)])
def test_cudnn_arguments_match_our_attention(heads, kv_heads, window, scale, without_cudnn):
    segments, positions = packed_rows()
    inputs = query_key_value(heads, kv_heads)
    actual = values_and_gradients(
        lambda q, k, v: attention_kernels.cudnn(q, k, v, segments, window, scale), inputs, segments
    )
    expected = values_and_gradients(
        lambda q, k, v: ours(q, k, v, segments, positions, window, scale=scale), inputs, segments
    )
    assert_same(actual, expected)


CONFIG = small_config(31, LENGTH, d_model=32, num_heads=4, window=20)


@pytest.mark.parametrize(
    ("backend", "remat"), [("splash", "dots"), pytest.param("cudnn", "none", marks=pytest.mark.exhaustive)]
)
def test_model_with_a_fused_kernel_has_the_same_loss_and_gradients(backend, remat, monkeypatch, without_cudnn):
    monkeypatch.setitem(attention_kernels.FUSED, "splash", functools.partial(attention_kernels.splash, interpret=True))
    config = dataclasses.replace(CONFIG, remat=remat)
    segments, positions = packed_rows()
    tokens = jax.random.randint(jax.random.key(1), segments.shape, 0, config.vocab_size)
    batch = Batch(tokens=tokens, targets=tokens, weights=segments > 0, positions=positions, segments=segments)
    params = random_params(build_model(config), 0.1)

    def gradient(name):
        def total(params):
            logits = Decoder(config, NextToken(), name).apply({"params": params}, batch, train=True).logits
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) * batch.weights), logits * batch.weights[..., None]

        return jax.jit(jax.grad(total, has_aux=True))(params)

    (actual, actual_logits), (expected, expected_logits) = gradient(backend), gradient("xla")
    np.testing.assert_allclose(actual_logits, expected_logits, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


def test_auto_chooses_the_fused_kernel_where_possible():
    def choice(platform, **changes):
        return build_model(dataclasses.replace(CONFIG, **changes), platform=platform).kernel

    assert choice("cpu") == choice(None) == choice("cpu", global_every=2, window=8) == "blocked"
    assert choice("cpu", attention_dropout=0.1) == "xla"
    assert choice("tpu") == "splash"
    assert choice("tpu", max_length=100) == choice("tpu", attention_dropout=0.1) == "xla"
    assert choice("gpu", dtype="bfloat16") == "cudnn"
    assert choice("tpu", global_every=2) == choice("gpu", dtype="bfloat16", global_every=2) == "xla"
    assert choice("gpu") == choice("gpu", dtype="bfloat16", attention_dropout=0.1) == "xla"
    assert choice("gpu", dtype="bfloat16", head_dim=12) == choice("gpu", dtype="bfloat16", head_dim=256) == "xla"
    assert choice("tpu", attention="xla") == "xla"


@pytest.mark.parametrize(
    ("platform", "changes", "reason"),
    [
        ("cpu", {"attention": "splash"}, "runs on a tpu"),
        ("gpu", {"attention": "splash"}, "runs on a tpu"),
        ("cpu", {"attention": "cudnn", "dtype": "bfloat16"}, "runs on a gpu"),
        ("gpu", {"attention": "cudnn"}, "bfloat16"),
        ("gpu", {"attention": "cudnn", "dtype": "bfloat16", "head_dim": 20}, "head_dim"),
        ("tpu", {"attention": "splash", "max_length": 200}, "max_length"),
        ("tpu", {"attention": "splash", "attention_dropout": 0.1}, "dropout"),
        ("tpu", {"attention": "splash", "global_every": 3}, "global_every"),
    ],
)
def test_an_explicit_choice_that_cannot_work_is_refused(platform, changes, reason):
    with pytest.raises(UserError, match=reason):
        build_model(dataclasses.replace(CONFIG, **changes), platform=platform)


def test_calls_that_a_fused_kernel_cannot_serve_use_xla():
    assert attention_kernels.kernel_for_call("splash", 256, cached=False) == "splash"
    assert attention_kernels.kernel_for_call("splash", 200, cached=False) == "xla"
    assert attention_kernels.kernel_for_call("cudnn", 201, cached=False) == "xla"
    assert attention_kernels.kernel_for_call("cudnn", 200, cached=True) == "xla"


def test_no_mask_is_computed_for_a_fused_kernel(monkeypatch):
    """The (B, L, S) mask is traced only for our own attention."""
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        return attention_mask(*args, **kwargs)

    monkeypatch.setattr("lm.models.transformer.tower.attention_mask", spy)
    monkeypatch.setitem(attention_kernels.FUSED, "splash", lambda q, *_: q)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    batch, params = Batch(ids, ids, ids, ids, ids), random_params(build_model(CONFIG), 0.1)
    for backend, expected in (("splash", 0), ("xla", 1)):
        calls.clear()
        jax.eval_shape(
            lambda p, b, name=backend: Decoder(CONFIG, NextToken(), name).apply({"params": p}, b), params, batch
        )
        assert len(calls) == expected
