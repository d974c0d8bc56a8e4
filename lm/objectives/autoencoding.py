"""The loss of autoencoders: the cross-entropy of the reconstructed text and, if variational, the KL divergence.

The negative evidence lower bound of a text x is E[-log p(x | z)] + KL(q(z | x) || p(z)), where z is drawn from the
posterior q, a normal distribution with a diagonal covariance, and the prior p is standard normal (Kingma 2014).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Latents, Output
from lm.config import ObjectiveConfig
from lm.objectives.losses import LossSums, loss_sums, real_rows


@dataclass(frozen=True)
class Annealing:
    """A schedule that raises the weight of the KL divergence, selected with objective.kl_annealing."""

    doc: str
    function: Callable[[Array], Array]  # maps the share of annealing steps (0 to 1) to the share of the final weight


ANNEALING: dict[str, Annealing] = {
    "linear": Annealing("the share of kl_annealing_steps that has passed", lambda share: share),
    "sigmoid": Annealing("1 / (1 + exp(6 - 12 share))", lambda share: jax.nn.sigmoid(12 * share - 6)),
}


def kl_weight(step: Array, config: ObjectiveConfig) -> Array:
    """Returns the weight of the KL divergence at a step; steps are counted from 0."""
    if not config.kl_annealing_steps:
        return jnp.asarray(config.kl_weight, jnp.float32)
    share = step / config.kl_annealing_steps
    rising = ANNEALING[config.kl_annealing].function(share)
    return config.kl_weight * jnp.where(share < 1, rising, 1.0)


def kl_divergence(latents: Latents) -> Array:
    """Returns the KL divergence of N(mean, variance) from N(0, 1) in each dimension, in nats, float32 (B, k, Z)."""
    assert latents.log_variance is not None, "only a variational autoencoder has a posterior"
    return 0.5 * (jnp.square(latents.mean) + jnp.exp(latents.log_variance) - 1.0 - latents.log_variance)


def autoencoding_loss(output: Output, batch: Batch, config: ObjectiveConfig, weight: Array | float) -> LossSums:
    """Returns the summed loss of a batch: the cross-entropy plus `weight` times the KL divergence of each text.

    In the loss, config.free_bits sets a floor on the divergence in each dimension of each text. `LossSums.kl` is the
    divergence without this floor.
    """
    sums, real_B = loss_sums(output.scores, batch, config), real_rows(batch)
    sums = dataclasses.replace(sums, texts=jnp.sum(real_B))
    if output.latents.log_variance is None:
        return sums
    # The meaningless posteriors of padding rows are replaced by the prior, so that they cannot make the gradient NaN.
    real_B11 = real_B[:, None, None] > 0
    kl_BkZ = kl_divergence(jax.tree.map(lambda x: jnp.where(real_B11, x, 0.0), output.latents))
    counted_BkZ = jnp.where(real_B11, jnp.maximum(kl_BkZ, config.free_bits), 0.0)
    kl, counted = jnp.sum(kl_BkZ), jnp.sum(counted_BkZ)
    return dataclasses.replace(sums, loss=sums.loss + weight * counted, kl=kl)
