"""The losses of word vectors: negative sampling (Mikolov 2013) and weighted least squares (Pennington 2014)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import ObjectiveConfig
from lm.objectives.losses import LossSums


def negative_sampling_loss(output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Returns the summed loss of all pairs: -log s(z) for each pair, and -log s(-z) for its negatives.

    z is the logit of a pair, and s is the logistic function. The random words of a block serve as negatives for all its
    pairs, so the mean of their losses is counted `objective.negatives` = k times for each pair. At the optimum, z is
    the pointwise mutual information minus log k (Levy 2014). `correct` is half the number of true pairs with z > -log k
    plus half the weighted number of random pairs with z < -log k.
    """
    pairs_BLP, scores_BLP = output.pairs, output.logits[..., : output.pairs.shape[-1]]
    noise_BLN, weights_BL = output.logits[..., output.pairs.shape[-1] :], batch.weights
    true = jnp.sum(jnp.where(pairs_BLP, jax.nn.softplus(-scores_BLP), 0.0))
    false = jnp.sum(jnp.mean(jax.nn.softplus(noise_BLN), axis=-1) * weights_BL)
    loss = true + config.negatives * false
    middle = -math.log(config.negatives)
    right = jnp.sum((scores_BLP > middle) & pairs_BLP)
    rejected = jnp.sum(jnp.mean((noise_BLN < middle).astype(jnp.float32), axis=-1) * weights_BL)
    return LossSums(loss=loss, nll=loss, correct=0.5 * (right + rejected), weight=jnp.sum(weights_BL))


def count_weights(counts: Array, config: ObjectiveConfig) -> Array:
    """Returns GloVe's weights for pairs with these counts: min(1, count / count_limit)^count_power."""
    return jnp.minimum(1.0, counts / config.count_limit) ** config.count_power


def count_loss(output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Returns the sum of the weighted squared errors of the predicted log-counts (Pennington 2014, eq. 8)."""
    counts_BL = jnp.where(batch.weights > 0, batch.targets, 1.0)
    errors_BL = jnp.square(output.logits - jnp.log(counts_BL)) * count_weights(counts_BL, config)
    loss = jnp.sum(errors_BL * batch.weights)
    return LossSums(loss=loss, nll=loss, weight=jnp.sum(batch.weights))
