"""Each model option against its closed form, and combinations of options in every way of running a model."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, MeshConfig, ModelConfig, defaults, source
from lm.config.schema import build
from lm.config.unused import unused
from lm.errors import UserError
from lm.models import build_model
from lm.models.layers import ACTIVATIONS, NORM_POSITIONS, Norm
from lm.models.parameters import unstack_layers
from lm.models.transformer.attention import dot_product_attention
from lm.models.transformer.positions import rotary, sinusoidal_positions
from lm.models.transformer.rope_scaling import ROPE_SCALINGS
from lm.models.transformer.scores import Scores
from lm.models.transformer.splash_attention import splash
from lm.models.transformer.stack import layer_pattern
from lm.models.transformer.wiring import shifted_right
from lm.parallel.mesh import make_mesh, on_mesh, param_shardings
from lm.training.multipliers import learning_rate_multipliers
from lm.training.names import block_of
from tests.models.packed_attention import assert_same, ours, packed_rows, query_key_value, values_and_gradients
from tests.models.test_attention import make_batch
from tests.small_model import random_params
from tests.trees import flatten

CONFIG = ModelConfig(
    vocab_size=23, num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32, max_length=16
)


BATCH = make_batch(IDS := jnp.arange(8)[None], IDS, jnp.ones_like(IDS))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params):
    return build_model(config).apply({"params": params}, BATCH).logits


def initial(config):
    return flatten(nn.unbox(jax.eval_shape(lambda: build_model(config).initial_params(jax.random.key(0)))))


@pytest.mark.parametrize(
    ("attention_bias", "use_bias", "biased"),
    [
        ("default", True, "query key value out up down"),
        ("default", False, ""),
        ("none", True, "up down"),
        ("qkv", False, "query key value"),
        ("all", False, "query key value out"),
    ],
)
def test_attention_bias_decides_which_projections_have_a_bias(attention_bias, use_bias, biased):
    found = initial(dataclasses.replace(CONFIG, attention_bias=attention_bias, use_bias=use_bias))
    assert {path.split("/")[-2] for path in found if path.endswith("/bias") and "norm" not in path} == {*biased.split()}


def test_unit_offset_adds_one_to_the_scale_in_float32():
    """The scale is small enough for 1 + scale to be 1 in bfloat16."""
    config = dataclasses.replace(CONFIG, norm="rmsnorm", norm_unit_offset=True, dtype="bfloat16", norm_epsilon=0.0)
    x = np.random.default_rng(0).normal(size=(1, 3, 16)).astype(np.float32)
    scale = np.full(16, 2.0**-9, np.float32)
    found = Norm(dataclasses.replace(config, dtype="float32")).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(found, (1 + 2.0**-9) * x / np.sqrt(np.mean(x**2, -1, keepdims=True)), rtol=1e-6)
    params = nn.unbox(Norm(config).init(jax.random.key(0), x))
    np.testing.assert_array_equal(params["params"]["scale"], np.zeros(16))


@pytest.mark.parametrize(
    ("position", "names"),
    [
        ("pre", "attention_norm mlp_norm final_norm"),
        ("post", "attention_norm mlp_norm"),
        ("sandwich", "attention_norm attention_output_norm mlp_norm mlp_output_norm final_norm"),
        ("branch", "attention_output_norm mlp_output_norm final_norm"),
    ],
)
def test_norm_position_decides_which_norms_exist(position, names):
    assert set(NORM_POSITIONS) == {"pre", "post", "sandwich", "branch"}
    found = initial(dataclasses.replace(CONFIG, norm_position=position))
    assert {path.split("/")[-2] for path in found if path.endswith("/scale")} == set(names.split())


def test_softcap_and_scale_of_attention_match_their_definition():
    q, k, v = (x.astype(np.float64) for x in np.random.default_rng(0).normal(size=(3, 1, 5, 2, 4)))
    mask = np.tril(np.ones((1, 5, 5), bool))
    y = dot_product_attention(
        *(jnp.asarray(x, jnp.float32) for x in (q, k.swapaxes(1, 2), v.swapaxes(1, 2))), mask, scale=0.7, softcap=1.3
    )
    for head in range(2):
        scores = 1.3 * np.tanh(0.7 * q[0, :, head] @ k[0, :, head].T / 1.3)
        weights = np.exp(scores) * mask[0]
        expected = weights / weights.sum(-1, keepdims=True) @ v[0, :, head]
        np.testing.assert_allclose(y[0, :, head], expected, atol=1e-6)


@pytest.mark.parametrize(("scale", "softcap"), [(0.7, 0.0), (0.0, 2.0)])
def test_splash_serves_scale_and_softcap(scale, softcap):
    segments, positions = packed_rows()
    inputs = query_key_value(4, 2)
    actual = values_and_gradients(
        lambda q, k, v: splash(q, k, v, segments, segments, Scores(True, 9, scale, softcap), interpret=True),
        inputs,
        segments,
    )
    expected = values_and_gradients(
        lambda q, k, v: ours(q, k, v, segments, positions, 9, scale=scale, softcap=softcap), inputs, segments
    )
    assert_same(actual, expected)


def test_cudnn_serves_scale_and_refuses_softcap():
    gpu = dataclasses.replace(CONFIG, dtype="bfloat16", head_dim=8)
    for changes, kernel in (({"attention_scale": 0.5}, "cudnn"), ({"attention_softcap": 9.0}, "xla")):
        assert build_model(dataclasses.replace(gpu, **changes), platform="gpu").kernel == kernel
    tpu = dataclasses.replace(CONFIG, max_length=128, attention_scale=0.5, attention_softcap=9.0)
    assert build_model(tpu, platform="tpu").kernel == "splash"


def test_initial_scores_have_the_same_deviation_for_any_attention_scale():
    deviations = []
    for scale in (0.0, 1.0, 0.1):
        config = dataclasses.replace(CONFIG, d_model=64, head_dim=64, attention_scale=scale)
        params = nn.unbox(jax.jit(lambda config=config: build_model(config).initial_params(jax.random.key(0)))())
        deviations.append(np.std(params["layers"]["attention"]["query"]["kernel"]) * (scale or 64**-0.5))
    np.testing.assert_allclose(deviations, deviations[0], rtol=1e-5)


def test_logits_are_capped_last():
    config = dataclasses.replace(CONFIG, output_bias=True)
    capped_config, params = dataclasses.replace(config, logits_softcap=0.5), random_params(build_model(config))
    plain, capped = (logits_of(each, params) for each in (config, capped_config))
    np.testing.assert_allclose(capped, 0.5 * np.tanh(plain / 0.5), atol=1e-6)


def scaled_rates(**changes):
    config = dataclasses.replace(CONFIG, head_dim=128, rotary_theta=500_000.0, **changes)
    rates = config.rotary_theta ** -(np.arange(0, 128, 2) / 128)
    return rates, *ROPE_SCALINGS[config.rope_scaling].rescale(config, config.rotary_theta, rates)


def test_linear_scaling_divides_all_frequencies():
    rates, scaled, factor = scaled_rates(rope_scaling="linear", rope_factor=8.0)
    np.testing.assert_array_equal(scaled, rates / 8)
    assert factor == 1.0


def test_llama3_scaling_matches_its_definition():
    """Wavelengths above 8192 / 1 are multiplied by 8, those below 8192 / 4 are kept (the code of Llama 3.1)."""
    rates, scaled, factor = scaled_rates(rope_scaling="llama3", rope_factor=8.0, rope_original_length=8192)
    for rate, found in zip(rates, scaled, strict=True):
        wavelength = 2 * np.pi / rate
        smooth = (8192 / wavelength - 1) / (4 - 1)
        between = (1 - smooth) * rate / 8 + smooth * rate
        assert found == pytest.approx(rate if wavelength < 2048 else rate / 8 if wavelength > 8192 else between)
    assert factor == 1.0 and 0 < sum(rates / 8 == scaled) < 64 > sum(rates == scaled) > 0


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_matches_its_definition(truncate):
    """Peng 2023, section 3.2, with the bounds of the ramp in indices, as in the authors' code."""
    rates, scaled, factor = scaled_rates(
        rope_scaling="yarn", rope_factor=4.0, rope_original_length=32_768, rope_truncate=truncate
    )
    low, high = (64 * np.log(32_768 / (turns * 2 * np.pi)) / np.log(500_000.0) for turns in (32, 1))
    low, high = (np.floor(low), np.ceil(high)) if truncate else (low, high)
    ramp = np.clip((np.arange(64) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(scaled, rates / 4 * ramp + rates * (1 - ramp), rtol=1e-12)
    assert factor == pytest.approx(0.1 * np.log(4) + 1)
    assert (
        scaled_rates(rope_scaling="yarn", rope_factor=4.0, rope_original_length=99, rope_attention_factor=1.5)[2] == 1.5
    )


def test_attention_factor_multiplies_cosines_and_sines():
    changes = {"rope_scaling": "yarn", "rope_factor": 1.0, "rope_original_length": 64, "rope_attention_factor": 1.5}
    positions = jnp.array([[0, 5, 400]])
    plain, scaled = (rotary(positions, 8, 100.0, each) for each in (None, dataclasses.replace(CONFIG, **changes)))
    np.testing.assert_allclose(scaled.cos, 1.5 * plain.cos, rtol=1e-6)
    np.testing.assert_allclose(scaled.sin, 1.5 * plain.sin, rtol=1e-6)


def test_pattern_says_which_layers_have_scaled_rotary_positions_or_none():
    def kinds(**changes):
        return layer_pattern(dataclasses.replace(CONFIG, num_layers=4, window=5, **changes))

    assert [each.rope_is_scaled for each in kinds()] == [True] * 4
    assert [each.rope_is_scaled for each in kinds(global_every=2)] == [True, False, True, False]
    assert all(each.rope_is_scaled for each in kinds(global_every=2, rope_scaling_local=True))
    assert [each.is_rotary for each in kinds(nope_every=4, nope_offset=3)] == [True, True, True, False]
    assert [each.has_first_norm for each in kinds(first_norm=False)] == [False, True, True, True]


def test_all_layers_without_rotary_positions_equal_a_model_without_positions():
    params = random_params(build_model(CONFIG))
    found, expected = (
        logits_of(dataclasses.replace(CONFIG, **changes), params)
        for changes in ({"nope_every": 1}, {"positions": "none"})
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scan", [True, False])
def test_first_attention_reads_the_embeddings_as_they_are_without_first_norm(scan):
    """The norm of the first layer has no influence; that of the second has."""
    config = dataclasses.replace(CONFIG, first_norm=False, scan_layers=scan)
    params = random_params(build_model(dataclasses.replace(config, scan_layers=True)))

    def logits(layer, scale, first_norm=False):
        changed = jax.tree.map(np.array, params)
        norm = changed["layers"]["attention_norm"]
        if scale:
            norm["scale"][layer] = scale
        each = dataclasses.replace(config, first_norm=first_norm)
        tree = changed if scan else unstack_layers(changed)
        return np.asarray(logits_of(each, tree))

    np.testing.assert_array_equal(logits(0, 2.0), logits(0, 0))
    assert np.abs(logits(1, 2.0) - logits(1, 0)).max() > 1e-2
    assert np.abs(logits(0, 0, first_norm=True) - logits(0, 0)).max() > 1e-2


def test_factorised_embeddings_are_projected_before_the_first_block():
    """A model with the tables E W + b in place of E and W computes the same."""
    narrow = dataclasses.replace(CONFIG, embedding_width=6, tie_embeddings=False)
    params = random_params(build_model(narrow))
    wide = {name: value for name, value in params.items() if name != "embedding_projection"}
    projected = params["token_embedding"]["embedding"] @ params["embedding_projection"]["kernel"]
    wide["token_embedding"] = {"embedding": projected + params["embedding_projection"]["bias"]}
    expected = logits_of(dataclasses.replace(narrow, embedding_width=0), wide)
    np.testing.assert_allclose(logits_of(narrow, params), expected, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_shared_layers_equal_layers_with_equal_parameters(scan):
    """The logits, and the gradients of the shared layer, which are the sums of those of all layers."""
    apart = dataclasses.replace(CONFIG, num_layers=3)
    shared = dataclasses.replace(apart, share_layers=True, scan_layers=scan, remat="full")
    params = random_params(build_model(shared))
    copied = {name: value for name, value in params.items() if name != "shared_layer"}
    copied["layers"] = jax.tree.map(lambda x: np.stack([x] * 3), params["shared_layer"])

    def loss(params, config):
        logits = build_model(config).apply({"params": params}, BATCH, train=True).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (found, logits), (expected, expected_logits) = gradient(params, shared), gradient(copied, apart)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.sum(axis=0), atol=1e-5), found["shared_layer"], expected["layers"]
    )
    axes = jax.eval_shape(lambda: build_model(shared).initial_params(jax.random.key(0)))["shared_layer"]
    assert axes["attention"]["query"]["kernel"].names == ("embed", "heads", "head_dim")


def test_a_shared_layer_is_one_layer_for_learning_rates_and_matrices():
    assert block_of(("encoder", "shared_layer", "mlp", "up", "kernel")) == 0
    values = {
        "data": {"train": {"a": {"kind": "embedded"}}},
        "model": {"num_layers": 3, "share_layers": True, "embedding_width": 6, "vocab_size": 9},
        "optimizer": {"layer_decay": 0.5},
    }
    config = Config.from_dict(values)
    multipliers = learning_rate_multipliers(config, build_model(config.model))
    assert multipliers["shared_layer/mlp/up/kernel"] == 0.5
    assert multipliers["embedding_projection/kernel"] == multipliers["token_embedding/embedding"] == 0.25
    with pytest.raises(UserError, match=r"optimizer.freeze_layers: the model has fewer layers \(1\)"):
        Config.from_dict(values | {"optimizer": {"freeze_layers": 2}})


@pytest.mark.parametrize("norm_position", ["sandwich", "branch"])
def test_options_give_the_same_logits_on_a_mesh(norm_position):
    """Heads are split, so norms over all heads, and the shared layer, are combined over devices."""
    config = dataclasses.replace(
        CONFIG,
        vocab_size=24,
        norm_position=norm_position,
        qk_norm="width",
        attention_softcap=2.0,
        embedding_width=8,
        share_layers=norm_position == "branch",
        output_bias=True,
    )
    params = random_params(build_model(config))
    batch = jax.tree.map(lambda x: jnp.repeat(x, 4, axis=0), BATCH)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(lambda: build_model(config).initial_params(jax.random.key(0)))
    placed = jax.device_put(params, param_shardings(boxed, mesh))
    assert len(placed["embedding_projection"]["kernel"].sharding.device_set) == 8
    with on_mesh(mesh):
        found = jax.jit(lambda p, b: build_model(config).apply({"params": p}, b).logits)(placed, batch)
    np.testing.assert_allclose(found[:1], logits_of(config, params), atol=1e-5)


def test_activations_match_their_definition():
    x = np.linspace(-4, 4, 33)
    for name, expected in {
        "silu": x / (1 + np.exp(-x)),
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "reglu": np.maximum(x, 0),
    }.items():
        np.testing.assert_allclose(ACTIVATIONS[name].function(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_last_sinusoid_of_m2m100_is_ten_thousand_times_as_long_as_the_first():
    config = dataclasses.replace(CONFIG, d_model=8, sinusoid_variant="half_minus_one", sinusoid_offset=2)
    angles = np.array([0, 5, 30])[:, None] + 2
    expected = angles * 10_000.0 ** (-np.arange(4) / 3)
    found = sinusoidal_positions(config, jnp.array([[0, 5, 30]]))[0]
    np.testing.assert_allclose(found, np.concatenate([np.sin(expected), np.cos(expected)], axis=-1), atol=1e-5)


def test_decoder_reads_each_text_shifted_with_its_last_token_in_front():
    tokens, segments = jnp.array([[5, 6, 2, 7, 8, 9, 2, 0]]), jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    np.testing.assert_array_equal(shifted_right(tokens, segments)[0, :7], [2, 5, 6, 2, 7, 8, 9])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": "llama3"}, "rope_original_length: rope_scaling='llama3' needs this length"),
        ({"rope_scaling": "yarn"}, "rope_original_length: rope_scaling='yarn' needs this length"),
        (
            {"rope_scaling": "llama3", "rope_original_length": 9, "rope_low_freq_factor": 4.0},
            "rope_high_freq_factor: this must exceed rope_low_freq_factor=4.0",
        ),
        (
            {"rope_scaling": "yarn", "rope_original_length": 9, "rope_beta_fast": 1.0},
            "rope_beta_fast: this must exceed rope_beta_slow=1.0",
        ),
        ({"window": 4, "global_every": 2, "global_offset": 2}, "global_offset: 2 is not less than global_every=2"),
        ({"nope_every": 2, "nope_offset": 2}, "nope_offset: 2 is not less than nope_every=2"),
        ({"nope_every": 1}, "nope_every: no layer would have rotary positions"),
        ({"attention": "cudnn", "dtype": "bfloat16", "attention_softcap": 9.0}, "'cudnn' does not support"),
        ({"positions": "sinusoidal", "embedding_width": 7}, "embedding_width: 7 is odd"),
        (
            {"positions": "sinusoidal", "embedding_width": 2, "sinusoid_variant": "half_minus_one"},
            "'half_minus_one' needs model.embedding_width to be at least 4",
        ),
    ],
)
def test_options_that_cannot_work_together_are_refused(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Config.from_dict({"data": {"train": {"a": {"kind": "embedded"}}}, "model": changes})


def test_options_without_effect_are_reported():
    values = defaults()
    values.data.train.a = source(kind="embedded")
    values.model.update(norm_position="post", first_norm=False, rope_factor=2.0, nope_offset=1, global_offset=1)
    found = unused(build(Config, values.to_dict()))
    assert sorted(line.split("=")[0] for line in found) == [
        f"config.model.{name}" for name in ("first_norm", "global_offset", "nope_offset", "rope_factor")
    ]


def test_global_offset_moves_the_pattern():
    def windows(**changes):
        return [each.window for each in layer_pattern(dataclasses.replace(CONFIG, num_layers=7, window=5, **changes))]

    assert windows() == [5] * 7
    assert windows(global_every=3) == [0, 5, 5, 0, 5, 5, 0]
    assert windows(global_every=6, global_offset=5) == [5, 5, 5, 5, 5, 0, 5]
    assert windows(global_offset=1) == [5] * 7, "without effect"
