"""The encoder-decoder: caching, packing, padding and shared sources change no result; T5's relative bias."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.config import ObjectiveConfig
from lm.models import build_model
from lm.models.parameters import count_parameters, unstack_layers
from lm.models.transformer.positions import RelativeBias, distance_buckets
from lm.objectives.losses import loss_sums
from tests.small_model import random_params, small_config

V, D = 31, 16
CONFIG = small_config(V, 24, family="encoder_decoder", num_layers=2, num_encoder_layers=1, d_model=D, num_heads=4)
# These few variants cover all settings of the family, since compilation takes most of the time of these tests.
VARIANTS = {
    "t5": dataclasses.replace(
        CONFIG,
        positions="relative",
        relative_buckets=8,
        relative_max_distance=12,
        norm="rmsnorm",
        use_bias=False,
        attention_scale=1.0,
        scale_logits=True,
        activation="relu",
    ),
    "bart": dataclasses.replace(
        CONFIG,
        positions="learned",
        norm_position="post",
        norm_embeddings=True,
        activation="geglu_tanh",
        tie_embeddings=False,
        num_layers=1,
        scan_layers=False,
    ),
    "apart": dataclasses.replace(
        CONFIG, positions="sinusoidal", embedding_scale=0.0, share_embeddings=False, source_vocab_size=37
    ),
    # every option that concerns cross-attention, the cache or the logits
    "options": dataclasses.replace(
        CONFIG,
        positions="sinusoidal",
        sinusoid_variant="half_minus_one",
        sinusoid_offset=2,
        embedding_width=8,
        share_layers=True,
        norm_position="sandwich",
        norm_unit_offset=True,
        qk_norm="width",
        attention_bias="qkv",
        attention_scale=0.4,
        attention_softcap=2.0,
        logits_softcap=5.0,
        output_bias=True,
    ),
}


@functools.cache
def model_and_params(name):
    model = build_model(VARIANTS[name])
    return model, random_params(model)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch, cache=None):
    return model.apply({"params": params}, batch, cache=cache)


def batch_of(source_BS, tokens_BL, source_segments=None, segments=None):
    """Returns a batch in which the positions of each segment start at 0."""

    def place(segments):
        positions = np.zeros(segments.shape, np.int32)
        for b, row in enumerate(segments):
            for number in set(row):
                positions[b, row == number] = np.arange(np.sum(row == number))
        return positions * (segments > 0)

    source_segments = np.ones(source_BS.shape, np.int32) if source_segments is None else source_segments
    segments = np.ones(tokens_BL.shape, np.int32) if segments is None else segments
    source = Source(tokens=source_BS, positions=place(source_segments), segments=source_segments)
    return Batch(
        tokens=tokens_BL,
        targets=np.roll(tokens_BL, -1, 1),
        weights=(segments > 0).astype(np.float32),
        positions=place(segments),
        segments=segments,
        source=source,
    )


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(4, V, shape).astype(np.int32)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_matches_the_full_forward_at_every_step(name):
    model, params = model_and_params(name)
    source, tokens = random_tokens(2, 9), random_tokens(2, 8, seed=1)
    full = apply(model, params, batch_of(source, tokens)).logits
    cache = model.empty_cache(2, 8, 9)
    ones = np.ones((2, 1), np.int32)
    for t in range(8):
        one = tokens[:, t : t + 1]
        step = Batch(one, one, ones.astype(np.float32), ones * t, ones)
        if t == 0:
            step = dataclasses.replace(step, source=batch_of(source, tokens).source)
        output = apply(model, params, step, cache)
        cache = output.cache
        np.testing.assert_allclose(output.logits[:, 0], full[:, t], atol=2e-5)


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.exhaustive)])
def test_packed_pairs_have_the_loss_and_gradients_of_separate_pairs(name):
    """Two pairs in one row match one pair per row: neither self- nor cross-attention mixes pairs."""
    model, params = model_and_params(name)
    a, b, x, y = random_tokens(5), random_tokens(4, seed=1), random_tokens(3, seed=2), random_tokens(6, seed=3)
    segments = np.array([[1] * 5 + [2] * 4 + [0]]), np.array([[1] * 3 + [2] * 6 + [0]])
    packed = batch_of(np.r_[a, b, 0][None], np.r_[x, y, 0][None], *segments)
    packed = dataclasses.replace(packed, targets=np.r_[x[::-1], y[::-1], 0][None])

    def row(tokens, length):
        return np.pad(tokens, (0, length - len(tokens)))

    apart = batch_of(
        np.stack([row(a, 10), row(b, 10)]),
        np.stack([row(x, 10), row(y, 10)]),
        np.array([[1] * 5 + [0] * 5, [1] * 4 + [0] * 6]),
        np.array([[1] * 3 + [0] * 7, [1] * 6 + [0] * 4]),
    )
    apart = dataclasses.replace(apart, targets=np.stack([row(x[::-1], 10), row(y[::-1], 10)]))

    @jax.jit
    def loss_and_gradients(params, batch):
        def loss(params):
            sums = loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig(label_smoothing=0.1))
            return sums.loss / sums.weight

        return jax.value_and_grad(loss)(params)

    expected, found = loss_and_gradients(params, apart), loss_and_gradients(params, packed)
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=1e-5)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-5, rtol=1e-4), found[1], expected[1])


@pytest.mark.parametrize("name", ["t5", "apart"])
def test_more_padding_of_the_source_changes_nothing(name):
    model, params = model_and_params(name)
    source, tokens = random_tokens(2, 9), random_tokens(2, 8, seed=1)
    plain = apply(model, params, batch_of(source, tokens)).logits
    padded = np.pad(source, ((0, 0), (0, 7)), constant_values=5)
    segments = np.pad(np.ones((2, 9), np.int32), ((0, 0), (0, 7)))
    found = apply(model, params, batch_of(padded, tokens, segments)).logits
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_the_source_matters_and_later_targets_do_not():
    model, params = model_and_params("apart")
    source, tokens = random_tokens(1, 9), random_tokens(1, 8, seed=1)
    plain = apply(model, params, batch_of(source, tokens)).logits
    last = source.copy()
    last[0, -1] += 1 if last[0, -1] < V - 1 else -1
    assert np.abs(apply(model, params, batch_of(last, tokens)).logits - plain).min(axis=-1).max() > 1e-4
    later = tokens.copy()
    later[0, 5] = 4 + (later[0, 5] - 3) % (V - 4)
    np.testing.assert_array_equal(apply(model, params, batch_of(source, later)).logits[:, :5], plain[:, :5])


@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.exhaustive)])
def test_rows_that_share_a_source_or_are_reordered_match_rows_of_their_own(name):
    """Several reordered rows per source match one source per row, with stacked and with unrolled layers."""
    model, params = model_and_params(name)
    source, first, second = random_tokens(2, 9), random_tokens(2, 1, seed=1), random_tokens(6, 1, seed=2)

    def step(tokens, place, cache, source=None):
        ones = np.ones(tokens.shape, np.int32)
        return apply(model, params, Batch(tokens, tokens, ones.astype(np.float32), ones * place, ones, source), cache)

    sources = batch_of(source, first).source
    cache = step(first, 0, model.empty_cache(2, 4, 9), sources).cache.repeat_rows(3)
    cache = step(second, 1, cache).cache
    rows = np.array([2, 0, 0, 5, 4, 3])
    shared = step(second[rows], 2, cache.take_rows(rows)).logits

    wide = batch_of(np.repeat(source, 3, axis=0), np.repeat(first, 3, axis=0)).source
    cache = step(np.repeat(first, 3, axis=0), 0, model.empty_cache(6, 4, 9), wide).cache
    cache = step(second, 1, cache).cache
    alone = [step(second[r : r + 1], 2, jax.tree.map(lambda x, r=r: _row(x, r, model), cache)).logits[0] for r in rows]
    np.testing.assert_allclose(shared, np.stack(alone), atol=1e-5)


def _row(x, r, model):
    axis = 1 if model.config.scan_layers and x.ndim == 5 else 0
    return jnp.take(x, np.array([r]), axis=axis)


def test_distance_buckets_match_values_by_hand():
    """32 buckets up to distance 128: 16 for single distances, then ranges that grow geometrically (Raffel 2020)."""
    buckets = distance_buckets(32, 128)
    np.testing.assert_array_equal(buckets[:16], np.arange(16))
    for bucket in range(16, 32):  # bucket b begins at 16 * 8^((b - 16) / 16)
        begin = int(np.ceil(16 * 8 ** ((bucket - 16) / 16) - 1e-9))
        assert buckets[begin] == bucket or begin == 128, (bucket, begin)
        assert buckets[begin - 1] == bucket - 1
    assert buckets[128] == 31 and len(buckets) == 129


@pytest.mark.parametrize("causal", [True, False])
def test_relative_bias_matches_its_definition(causal):
    config = dataclasses.replace(VARIANTS["t5"], num_heads=2)
    table = np.arange(16, dtype=np.float32).reshape(8, 2)
    positions = np.arange(20)[None]
    bias = RelativeBias(config, causal).apply({"params": {"embedding": table}}, positions, positions)
    one_sided = 8 if causal else 4
    buckets = distance_buckets(one_sided, 12)
    for query in range(20):
        for key in range(query + 1 if causal else 20):
            ahead = 4 if key > query else 0
            bucket = buckets[min(abs(query - key), 12)] + ahead
            np.testing.assert_array_equal(bias[0, :, query, key], table[bucket])


def test_scanned_and_unrolled_towers_have_the_same_logits():
    model, params = model_and_params("t5")
    batch = batch_of(random_tokens(2, 9), random_tokens(2, 8, seed=1))
    unrolled = build_model(dataclasses.replace(model.config, scan_layers=False))
    expected = apply(model, params, batch).logits
    np.testing.assert_allclose(apply(unrolled, unstack_layers(params), batch).logits, expected, atol=1e-5)


def test_a_separate_source_vocabulary_has_its_own_embedding():
    _, params = model_and_params("apart")
    assert params["source_embedding"]["embedding"].shape == (37, D)
    _, shared = model_and_params("t5")
    assert "source_embedding" not in shared
    # Outside the layers there are only the embedding and the final norms of encoder and decoder.
    outside = {name: value for name, value in shared.items() if name not in ("encoder", "decoder")}
    assert count_parameters(outside) == V * D


def test_initial_standard_deviations():
    """init_std=0 means 1 / sqrt(inputs); without scaled scores, initial queries are smaller by a factor of sqrt(K)."""
    config = dataclasses.replace(VARIANTS["t5"], d_model=64, head_dim=16, d_ff=256, init_std=0.0, embedding_std=1.0)
    config = dataclasses.replace(config, init_residual_scaling=False)
    params = nn.unbox(jax.jit(lambda key: build_model(config).initial_params(key))(jax.random.key(0)))
    layers = params["decoder"]["layers"]
    found = {
        "embedding": params["token_embedding"]["embedding"],
        "key": layers["attention"]["key"]["kernel"],
        "query": layers["cross_attention"]["query"]["kernel"],
        "down": layers["mlp"]["down"]["kernel"],
    }
    expected = {"embedding": 1.0, "key": 1 / 8, "query": 1 / 8 / 4, "down": 1 / 16}
    for name, std in expected.items():
        assert float(np.std(found[name])) == pytest.approx(std, rel=0.05), name
