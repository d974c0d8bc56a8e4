"""The loss of autoencoders: the KL divergence, its weight and free bits, and their gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Latents, Output
from lm.config import ObjectiveConfig
from lm.evaluation.token_metrics import Sums, autoencoding_metrics
from lm.objectives.autoencoding import autoencoding_loss, kl_divergence, kl_weight
from lm.objectives.losses import loss_sums

PLAIN = ObjectiveConfig(name="autoencoding")
B, L, V, SHAPE = 3, 4, 5, (3, 2, 3)  # of the latent vectors: (B, k, Z)


def drawn(seed=0):
    """Returns a model's output and a batch of two texts and a row of padding."""
    random = np.random.default_rng(seed)
    segments = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.int32)
    targets, positions = random.integers(0, V, (B, L)).astype(np.int32), np.tile(np.arange(L, dtype=np.int32), (B, 1))
    batch = Batch(targets, targets, segments.astype(np.float32), positions, segments)
    latents = Latents(*(random.normal(size=SHAPE).astype(np.float32) for _ in range(2)))
    return Output(random.normal(size=(B, L, V)).astype(np.float32), latents=latents), batch


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -1.0), (-0.3, 0.7)])
def test_divergence_is_the_integral_over_the_line(mean, log_variance):
    x, deviation = np.linspace(-30, 30, 600_001), math.exp(0.5 * log_variance)
    q = np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    log_ratio = 0.5 * x**2 - 0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation)
    found = kl_divergence(Latents(np.full((1, 1, 1), mean, np.float32), np.full((1, 1, 1), log_variance, np.float32)))
    assert float(found[0, 0, 0]) == pytest.approx(np.trapezoid(q * log_ratio, x), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "weights"),
    [
        ({}, [1, 1, 1, 1]),
        ({"kl_weight": 0.5, "kl_annealing_steps": 4}, [0, 0.125, 0.5, 0.5]),
        ({"kl_annealing_steps": 4, "kl_annealing": "sigmoid"}, [1 / (1 + math.exp(6)), 1 / (1 + math.exp(3)), 1, 1]),
    ],
)
def test_weight_rises_and_then_stays(changes, weights):
    config = dataclasses.replace(PLAIN, **changes)
    assert [float(kl_weight(jnp.int32(step), config)) for step in (0, 1, 4, 9)] == pytest.approx(weights)


def test_loss_adds_the_weighted_divergence_of_each_text_but_not_of_padding():
    output, batch = drawn()
    mean, log_variance = output.latents.mean[:2], output.latents.log_variance[:2]
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    plain = loss_sums(output.logits, batch, PLAIN)
    for free_bits in (0.0, 0.8):
        sums = autoencoding_loss(output, batch, dataclasses.replace(PLAIN, free_bits=free_bits), 0.3)
        counted = sum(max(free_bits, float(each)) for each in kl.reshape(-1))
        assert float(sums.loss) == pytest.approx(float(plain.loss) + 0.3 * counted, rel=1e-5)
        assert (float(sums.kl), float(sums.texts)) == (pytest.approx(float(kl.sum()), rel=1e-5), 2)
        assert float(sums.nll) == float(plain.nll) and float(sums.weight) == 5
    assert (kl < 0.8).any() and (kl > 0.8).any()


def test_gradient_is_zero_below_the_free_bits_and_closed_form_above():
    output, batch = drawn()
    config, free = dataclasses.replace(PLAIN, free_bits=0.8), kl_divergence(output.latents) < 0.8

    def loss(latents):
        return autoencoding_loss(dataclasses.replace(output, latents=latents), batch, config, 0.3).loss

    found = jax.grad(loss)(output.latents)
    real = np.array([1, 1, 0], np.float32)[:, None, None]
    mean, log_variance = output.latents.mean, output.latents.log_variance
    np.testing.assert_allclose(found.mean, np.where(free, 0, 0.3 * real * mean), atol=1e-6)
    np.testing.assert_allclose(
        found.log_variance, np.where(free, 0, 0.15 * real * (np.exp(log_variance) - 1)), atol=1e-6
    )


def test_a_plain_autoencoder_has_only_the_cross_entropy():
    output, batch = drawn()
    output = dataclasses.replace(output, latents=Latents(output.latents.mean))
    sums, plain = autoencoding_loss(output, batch, PLAIN, 1.0), loss_sums(output.logits, batch, PLAIN)
    assert float(sums.loss) == float(plain.loss) and float(sums.kl) == 0


def test_metrics_are_per_text_and_per_token():
    found = autoencoding_metrics(Sums(nll=30.0, correct=5, weight=10, kl=10.0, texts=4))
    assert found == {
        "loss": 3.0,
        "token_accuracy": 0.5,
        "kl": 2.5,
        "negative_elbo": 10.0,
        "perplexity_bound": pytest.approx(math.exp(4)),
        "tokens": 10,
    }
