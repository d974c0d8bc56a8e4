"""The fused attention kernels compared with our own attention, and the choice between them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.batch import Batch, Source, same_segment
from lm.config import MeshConfig
from lm.errors import UserError
from lm.models import build_model
from lm.models.heads import NextToken
from lm.models.transformer import attention_kernels
from lm.models.transformer.attention import attention_mask, dot_product_attention
from lm.models.transformer.cudnn_attention import (
    APART,
    SEGMENT_FEATURES,
    cudnn,
    segment_features,
)
from lm.models.transformer.scores import Scores
from lm.models.transformer.splash_attention import splash
from lm.models.transformer.wiring import Decoder
from lm.parallel.mesh import make_mesh, on_mesh
from tests.models.packed_attention import (
    LENGTH,
    assert_same,
    ours,
    packed_rows,
    packed_sources,
    query_key_value,
    values_and_gradients,
)
from tests.small_model import random_params, small_config


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "causal"),
    [(4, 2, 0, True), (2, 2, 9, True), (2, 1, 0, False), pytest.param(2, 2, 9, False, marks=pytest.mark.exhaustive)],
)
def test_splash_matches_our_attention(heads, kv_heads, window, causal):
    segments, positions = packed_rows()
    inputs, scores = query_key_value(heads, kv_heads), Scores(causal, window)
    actual = values_and_gradients(
        lambda q, k, v: splash(q, k, v, segments, segments, scores, interpret=True), inputs, segments
    )
    expected = values_and_gradients(
        lambda q, k, v: ours(q, k, v, segments, positions, window, causal), inputs, segments
    )
    assert_same(actual, expected)


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_cross_attention_to_packed_sources_matches_our_attention(kernel, without_cudnn):
    (segments, _), sources = packed_rows(), packed_sources()
    q, k, v = query_key_value(4, 2)
    k, v = (jnp.concatenate([x, x[:, ::-1] + 0.5], axis=1) for x in (k, v))
    fused = functools.partial(splash, interpret=True) if kernel == "splash" else cudnn
    actual = values_and_gradients(lambda q, k, v: fused(q, k, v, segments, sources, Scores()), (q, k, v), segments)
    mask = same_segment(segments, sources)
    expected = values_and_gradients(
        lambda q, k, v: dot_product_attention(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask),
        (q, k, v),
        segments,
    )
    assert_same(actual, expected)


@pytest.mark.parametrize(("kv_heads", "split_kv"), [(2, True), (2, False)])
def test_splash_on_a_mesh_matches_one_device(kv_heads, split_kv):
    segments, positions = packed_rows(4)
    inputs = query_key_value(4, kv_heads, rows=4)
    expected = ours(*inputs, segments, positions, 0) * (segments > 0)[:, :, None, None]
    on_mesh_of_eight = jax.jit(lambda q, k, v: splash(q, k, v, segments, segments, Scores(True), interpret=True))
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        if split_kv:
            actual = on_mesh_of_eight(*inputs)
        else:  # sharding rules that do not split key heads
            with nn.logical_axis_rules((("batch", ("data", "fsdp")), ("heads", "tensor"))):
                actual = on_mesh_of_eight(*inputs)
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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "scale", "causal"),
    [(4, 2, 0, 0.0, True), (4, 1, 9, 0.7, True), (4, 2, 0, 0.0, False)],
)
def test_cudnn_arguments_match_our_attention(heads, kv_heads, window, scale, causal, without_cudnn):
    segments, positions = packed_rows()
    inputs, scores = query_key_value(heads, kv_heads), Scores(causal, window, scale)
    actual = values_and_gradients(lambda q, k, v: cudnn(q, k, v, segments, segments, scores), inputs, segments)
    expected = values_and_gradients(
        lambda q, k, v: ours(q, k, v, segments, positions, window, causal, scale=scale), inputs, segments
    )
    assert_same(actual, expected)


@pytest.mark.parametrize(("causal", "scale"), [(True, 1.0), (False, 0.001)])
def test_cudnn_with_a_bias_shared_by_all_rows_separates_segments(causal, scale, without_cudnn):
    """The bias is one that bfloat16 holds exactly, so that only the features of the segments can make a difference.

    They separate the segments however small the scale of the scores is.
    """
    segments, positions = packed_rows()
    inputs = query_key_value(4, 2)
    bias = jnp.round(8 * jax.random.normal(jax.random.key(3), (1, 4, LENGTH, LENGTH))) / 8

    def fused(q, k, v):
        return cudnn(q, k, v, segments, segments, Scores(causal, scale=scale), bias)

    def plain(q, k, v):
        return ours(q, k, v, segments, positions, 0, causal, bias_BHLS=bias, scale=scale)

    assert_same(*(values_and_gradients(each, inputs, segments) for each in (fused, plain)))


def test_heads_of_a_shared_bias_are_split_like_those_of_the_queries(without_cudnn):
    segments, _ = packed_rows(4)
    inputs, bias = query_key_value(4, 4, rows=4), jnp.zeros((1, 4, LENGTH, LENGTH))
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        traced = jax.make_jaxpr(lambda bias: cudnn(*inputs, segments, segments, Scores(True), bias))(bias)
    (constraint,) = [each for each in traced.eqns if each.primitive.name == "sharding_constraint"]
    assert constraint.invars[0].aval.shape == bias.shape
    assert constraint.params["sharding"].spec == PartitionSpec(None, "tensor", None, None)


def test_segment_features_have_the_product_zero_only_within_a_segment():
    segments = jnp.arange(300)[None]
    queries, keys = (segment_features(segments, of_keys)[0] for of_keys in (False, True))
    assert queries.shape == keys.shape == (300, SEGMENT_FEATURES)
    products = np.asarray(jnp.einsum("LI,SI->LS", queries.astype(jnp.bfloat16), keys.astype(jnp.bfloat16)), np.float32)
    differing = np.array([[(a ^ b).bit_count() for b in range(300)] for a in range(300)])
    np.testing.assert_array_equal(products, -(APART**2) * differing)


CONFIG = small_config(31, LENGTH, d_model=32, num_heads=4, window=20)


@pytest.mark.parametrize(
    ("backend", "remat"), [("splash", "dots"), pytest.param("cudnn", "none", marks=pytest.mark.exhaustive)]
)
def test_model_with_a_fused_kernel_has_the_same_loss_and_gradients(backend, remat, monkeypatch, without_cudnn):
    monkeypatch.setitem(attention_kernels.FUSED, "splash", functools.partial(splash, interpret=True))
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
    for family in ("encoder", "encoder_decoder"):
        sizes = {"family": family, "num_encoder_layers": 1, "window": 0}
        assert choice("tpu", **sizes) == "splash" and choice("gpu", dtype="bfloat16", **sizes) == "cudnn"
    assert choice("tpu", positions="relative") == "splash"
    assert choice("gpu", positions="relative", dtype="bfloat16") == "cudnn"
    assert choice("gpu", positions="relative", dtype="bfloat16", head_dim=128) == "xla"
    assert choice("gpu", family="encoder", dtype="bfloat16") == "xla"  # a window in both directions


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
        (
            "tpu",
            {"attention": "splash", "positions": "relative", "attention_softcap": 9.0},
            "does not support a soft cap on biased scores",
        ),
        ("tpu", {"attention": "splash", "positions": "relative", "max_length": 16384}, "only up to 8192 tokens"),
        ("gpu", {"attention": "cudnn", "dtype": "bfloat16", "family": "encoder"}, "windows only in a decoder"),
    ],
)
def test_an_explicit_choice_that_cannot_work_is_refused(platform, changes, reason):
    with pytest.raises(UserError, match=reason):
        build_model(dataclasses.replace(CONFIG, **changes), platform=platform)


def test_calls_that_a_fused_kernel_cannot_serve_use_xla():
    kernel = attention_kernels.kernel_for_call
    assert kernel("splash", 256, 128, cached=False) == "splash"
    assert kernel("splash", 200, 128, cached=False) == kernel("splash", 128, 200, cached=False) == "xla"
    assert kernel("cudnn", 201, 200, cached=False) == kernel("cudnn", 200, 201, cached=False) == "xla"
    assert kernel("cudnn", 200, 200, cached=True) == "xla"
    assert kernel("splash", 16384, 16384, cached=False) == "splash"
    assert kernel("splash", 16384, 16384, cached=False, relative=True) == "xla"


@pytest.mark.parametrize(
    ("positions", "lengths", "expected"),
    [
        ("learned", (256, 384), "splash"),
        ("learned", (200, 384), "splash and xla"),  # only the encoder has a fused kernel
        ("learned", (200, 130), "xla"),
        ("relative", (256, 16384), "splash and xla"),  # only cross-attention and the decoder do
    ],
)
def test_an_encoder_decoder_names_the_kernels_that_support_its_lengths(positions, lengths, expected):
    changes = {"family": "encoder_decoder", "num_encoder_layers": 1, "window": 0, "positions": positions}
    model = build_model(dataclasses.replace(CONFIG, **changes), platform="tpu")
    assert model.kernel == "splash" and model.attention_kernels(*lengths) == expected


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


@pytest.mark.parametrize("activations", ["float32", "compute"])
def test_a_fused_kernel_gets_the_compute_dtype_whatever_that_of_activations(activations, monkeypatch):
    dtypes = []

    def spy(*args):
        dtypes.extend(x.dtype for x in args[:3])
        return args[0]

    monkeypatch.setitem(attention_kernels.FUSED, "splash", spy)
    pairs = {"family": "encoder_decoder", "num_encoder_layers": 1}
    model = build_model(small_config(31, LENGTH, dtype="bfloat16", activation_dtype=activations, **pairs))
    ids = jnp.ones((1, LENGTH), jnp.int32)
    batch, params = Batch(ids, ids, ids, ids, ids, source=Source(ids, ids, ids)), random_params(model, 0.1)
    jax.eval_shape(lambda p: model.clone(kernel="splash").apply({"params": p}, batch), params)
    assert dtypes == ["bfloat16"] * 9  # queries, keys and values of three kinds of attention


@pytest.mark.parametrize(
    ("family", "positions", "kernel"),
    [
        pytest.param("encoder", "learned", "splash", marks=pytest.mark.exhaustive),
        ("encoder_decoder", "relative", "splash"),
        ("encoder_decoder", "relative", "cudnn"),
        pytest.param("encoder", "learned", "cudnn", marks=pytest.mark.exhaustive),
        pytest.param("encoder_decoder", "rotary", "splash", marks=pytest.mark.exhaustive),
    ],
)
def test_every_family_has_the_same_logits_and_gradients_with_a_fused_kernel(
    family, positions, kernel, monkeypatch, without_cudnn
):
    """An encoder-decoder has three kinds of attention: bidirectional, causal, and to packed sources."""
    fused = {"splash": functools.partial(splash, interpret=True), "cudnn": cudnn}[kernel]
    calls = []

    def spy(*args):
        calls.append(args)
        return fused(*args)

    monkeypatch.setitem(attention_kernels.FUSED, kernel, spy)
    sizes = {"num_encoder_layers": 1} if family == "encoder_decoder" else {}
    config = small_config(31, LENGTH, d_model=32, num_heads=4, family=family, positions=positions, **sizes)
    model = build_model(config)
    segments, indices = packed_rows()
    tokens = jax.random.randint(jax.random.key(1), segments.shape, 0, config.vocab_size)
    sources = packed_sources(length=LENGTH)
    source = Source(tokens, jnp.broadcast_to(jnp.arange(LENGTH), segments.shape), sources) if sizes else None
    batch = Batch(tokens, tokens, segments > 0, indices, segments, source=source)
    params = random_params(model, 0.1)

    def gradient(name):
        def total(params):
            output = model.clone(kernel=name).apply({"params": params}, batch, train=True)
            weights = batch.weights[..., None] if output.logits.ndim == 3 else 1.0
            return jnp.mean(jnp.sin(output.logits) * weights), output.logits * weights

        return jax.jit(jax.grad(total, has_aux=True))(params)

    (actual, actual_logits), (expected, expected_logits) = gradient(kernel), gradient("xla")
    assert len(calls) == (3 if sizes else 1)
    # The bias is rounded to bfloat16 for cuDNN.
    tolerance = 2e-2 if kernel == "cudnn" and positions == "relative" else 1e-4
    np.testing.assert_allclose(actual_logits, expected_logits, atol=tolerance)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * largest), actual, expected)
