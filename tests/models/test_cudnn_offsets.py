"""Attention on GPUs by the offsets of segments, compared with our own attention, and when it is used."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as stablehlo

from lm.batch import Batch, Source
from lm.config import MeshConfig
from lm.models import build_model
from lm.models.transformer import attention_kernels, cudnn_attention
from lm.models.transformer.attention import dot_product_attention
from lm.models.transformer.cudnn_attention import MOST_OFFSETS, cudnn, segment_offsets
from lm.models.transformer.scores import Scores
from lm.parallel.mesh import make_mesh, on_mesh
from tests.models.packed_attention import (
    LENGTH,
    assert_same,
    ours,
    packed_rows,
    query_key_value,
    values_and_gradients,
)
from tests.small_model import random_params, small_config


def by_lengths(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, qkv_layout):
    """Does what cuDNN does: attends within stretches of the given offsets and lengths, and leaves out other tokens."""
    assert qkv_layout == "BTNH" and q_offsets.shape[1] == q_seqlen.shape[1] + 1
    index_11L = jnp.arange(q.shape[1])[None, None]
    begins_BN1, ends_BN1 = q_offsets[:, :-1, None], (q_offsets[:, :-1] + q_seqlen)[..., None]
    is_inside_BNL = (q_seqlen > 0)[..., None] & (index_11L >= begins_BN1) & (index_11L < ends_BN1)
    assert kv_seqlen is q_seqlen and kv_offsets is q_offsets
    mask_BLS = jnp.einsum("bnl,bns->bls", *(is_inside_BNL.astype(jnp.int32),) * 2) > 0
    if mask_type == stablehlo.MaskType.PADDING_CAUSAL:
        mask_BLS &= jnp.swapaxes(index_11L, 1, 2) >= index_11L
    y = dot_product_attention(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask_BLS, scale=scale)
    return jnp.where(jnp.any(is_inside_BNL, axis=1)[..., None, None], y, jnp.nan)


@pytest.fixture
def with_offsets(monkeypatch):
    """Replaces cuDNN's attention with offsets, and pretends that the GPU is a Hopper one."""
    monkeypatch.setattr(stablehlo, "dot_product_attention", by_lengths)
    monkeypatch.setattr(cudnn_attention, "can_use_offsets", lambda *_: True)


@pytest.mark.parametrize(("causal", "most"), [(True, 5), (False, 9)])
def test_attention_with_offsets_matches_our_attention(causal, most, with_offsets):
    segments, positions = packed_rows()
    assert int(segments.max()) == 5 and int(segments.min()) == 0
    inputs, scores = query_key_value(2, 2), Scores(causal, scale=0.3, max_segments=most)
    actual = values_and_gradients(lambda q, k, v: cudnn(q, k, v, segments, segments, scores), inputs, segments)
    expected = values_and_gradients(
        lambda q, k, v: ours(q, k, v, segments, positions, 0, causal, scale=0.3), inputs, segments
    )
    assert_same(actual, expected)


def test_rows_with_offsets_are_split_over_a_mesh(with_offsets):
    segments, positions = packed_rows(4)
    inputs, scores = query_key_value(2, 2, rows=4), Scores(True, max_segments=5)
    expected = values_and_gradients(lambda q, k, v: ours(q, k, v, segments, positions, 0), inputs, segments)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        actual = values_and_gradients(lambda q, k, v: cudnn(q, k, v, segments, segments, scores), inputs, segments)
    assert actual[0].sharding.shard_shape(actual[0].shape) == (1, LENGTH, 1, 16)
    assert_same(actual, expected)


def test_offsets_and_lengths_of_segments():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1] * 8, [1, 1, 2, 2, 3, 4, 4, 4]])
    offsets, lengths = segment_offsets(segments, 4)
    assert offsets.tolist() == [[0, 3, 5, -1, 6, -1], [0, -1, -1, -1, -1, -1], [0, 2, 4, 5, -1, -1]]
    assert lengths.tolist() == [[3, 2, 1, -1, 2], [8, -1, -1, -1, -1], [2, 2, 1, 3, -1]]


def test_offsets_are_used_only_where_they_are_fast_and_known_to_work(monkeypatch):
    gpu = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    q, k, _ = query_key_value(4, 4)
    assert cudnn_attention.can_use_offsets(q, k, Scores(True, max_segments=1))
    assert cudnn_attention.can_use_offsets(q, k, Scores(False, max_segments=MOST_OFFSETS))
    refused = [Scores(True), Scores(True, max_segments=MOST_OFFSETS + 1), Scores(True, window=4, max_segments=2)]
    assert not any(cudnn_attention.can_use_offsets(q, k, each) for each in refused)
    assert not cudnn_attention.can_use_offsets(q, k[:, :, :2], Scores(True, max_segments=2))
    gpu.compute_capability = "8.9"
    assert not cudnn_attention.can_use_offsets(q, k, Scores(True, max_segments=2))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert not cudnn_attention.can_use_offsets(q, k, Scores(True, max_segments=2))


def test_jax_has_the_arguments_for_offsets():
    names = inspect.signature(stablehlo.dot_product_attention).parameters
    assert {"q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type", "qkv_layout"} <= set(names)


@pytest.mark.parametrize("most", [0, 7])
def test_only_self_attention_of_a_decoder_learns_the_largest_number_of_segments(most, monkeypatch):
    found = []

    def spy(q, k, v, segments, key_segments, scores, bias=None):
        found.append(scores.max_segments)
        return q

    monkeypatch.setitem(attention_kernels.FUSED, "cudnn", spy)
    model = build_model(small_config(31, 8, family="encoder_decoder", num_encoder_layers=1))
    ids = jnp.ones((1, 8), jnp.int32)
    batch = Batch(ids, ids, ids, ids, ids, source=Source(ids, ids, ids), max_segments=most)
    params = random_params(model, 0.1)
    found.clear()
    jax.eval_shape(lambda p: model.clone(kernel="cudnn").apply({"params": p}, batch), params)
    assert found == [0, most, 0]  # of the encoder, of the decoder, and of the decoder to the source
