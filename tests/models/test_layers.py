"""The properties common to all registered norms, and to all registered activations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from lm.models import build_model
from lm.models.layers import ACTIVATIONS, NORMS, Norm
from lm.models.parameters import count_parameters
from tests.models.small_encoders import ENCODER, MASKED, applied, random_params, rows_of, texts

WIDTH = 512


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_norm_gives_unit_scale_whatever_the_scale_of_its_input(norm, use_bias):
    config = dataclasses.replace(ENCODER, norm=norm, use_bias=use_bias, d_model=WIDTH, norm_epsilon=1e-12)
    x = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
    params = nn.unbox(Norm(config).init(jax.random.key(0), x))
    apply = jax.jit(Norm(config).apply)
    y = apply(params, x)
    np.testing.assert_allclose(y, apply(params, 7 * x), atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(y), axis=-1)), 1, atol=0.1)
    assert NORMS[norm].num_parameters(config) == count_parameters(params)


def test_l1norm_divides_by_the_scaled_mean_absolute_deviation():
    x = np.array([[[1.0, 2.0, 3.0, 6.0]]], np.float32)
    expected = (x - 3) / (1.5 * np.sqrt(np.pi / 2) + 0.1)
    np.testing.assert_allclose(NORMS["l1norm"].normalize(x, 0.1), expected, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_model_with_each_norm_counts_its_parameters(norm):
    model = build_model(dataclasses.replace(ENCODER, norm=norm), MASKED)
    shapes = jax.eval_shape(lambda: nn.unbox(model.initial_params(jax.random.key(0))))
    assert model.parameter_counts().total == count_parameters(shapes)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_close_to_zero_for_negative_and_grows_for_positive_values(activation):
    function = ACTIVATIONS[activation].function
    low, middle, high = function(jnp.array([-20.0, 1.0, 2.0]))
    assert abs(low) < 1e-3 < 0.5 < middle < high


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_gated_activations_have_a_gate(activation):
    config = dataclasses.replace(ENCODER, activation=activation)
    params = random_params(config)
    assert ("gate" in params["layers"]["mlp"]) == ACTIVATIONS[activation].gated
    assert np.isfinite(applied(config)(params, rows_of([texts(5, 4)])).logits).all()


def test_gelu_and_its_approximation_match_their_definitions_and_derivatives():
    z = np.linspace(-6, 6, 97)
    distribution = 0.5 * scipy.special.erfc(-z / np.sqrt(2))
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    tanh = np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))
    slope = (1 - tanh**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2)
    for name, value, derivative in (
        ("gelu", z * distribution, distribution + z * density),
        ("gelu_tanh", z * (1 + tanh) / 2, (1 + tanh + z * slope) / 2),
    ):
        x, function = jnp.asarray(z, jnp.float32), ACTIVATIONS[name].function
        np.testing.assert_allclose(jax.jit(function)(x), value, atol=2e-6)
        np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(function)))(x), derivative, atol=1e-5)


def test_gradient_of_layernorm_is_that_of_its_definition():
    def plain(x):
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 0.1)

    x, dy = np.random.default_rng(0).normal(3, 2, (2, 5, 7)).astype(np.float32)
    (y, pull), (expected, pull_expected) = (
        jax.vjp(function, x) for function in (lambda x: NORMS["layernorm"].normalize(x, 0.1), plain)
    )
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(pull(dy)[0], pull_expected(dy)[0], atol=1e-6)
