"""The loss of every objective that predicts tokens: sums over a batch, to be divided once."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig


def _zero() -> Array:
    return jnp.zeros((), jnp.float32)


@flax.struct.dataclass
class LossSums:
    """Sums over the tokens of a batch; divide by `weight` once, after all microbatches and devices."""

    loss: Array = flax.struct.field(
        default_factory=_zero
    )  # what is minimised: cross-entropy with label smoothing and z-loss
    nll: Array = flax.struct.field(default_factory=_zero)  # plain cross-entropy, nats
    correct: Array = flax.struct.field(default_factory=_zero)  # targets that were the most probable token
    weight: Array = flax.struct.field(default_factory=_zero)  # sum of the weights
    # Of whether a second text follows the first, where that is asked; to be divided by `pairs`.
    pair_nll: Array = flax.struct.field(default_factory=_zero)
    pair_correct: Array = flax.struct.field(default_factory=_zero)
    pairs: Array = flax.struct.field(default_factory=_zero)

    def __add__(self, other: LossSums) -> LossSums:
        return jax.tree.map(jnp.add, self, other)


def loss_sums(logits_BLV: Array, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Summed loss of a batch; logits float32.

    With label smoothing e over the vocabulary: (1 - e) nll + e mean_v(-log p_v) (Szegedy 2016). Over the other
    entries: (1 - e) nll + e / (V - 1) sum_{v != target}(-log p_v), which is the same with e V / (V - 1) for e
    (fairseq). z-loss: coefficient x log(Z)^2 (Chowdhery 2022).
    """
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_logit_BL = jnp.take_along_axis(logits_BLV, batch.targets[..., None], axis=-1)[..., 0]
    nll_BL = log_z_BL - target_logit_BL
    loss_BL = nll_BL
    if config.label_smoothing > 0:
        smoothing, V = config.label_smoothing, logits_BLV.shape[-1]
        if config.label_smoothing_over == "others":
            smoothing *= V / (V - 1)  # of which 1 / V falls on the target itself
        uniform_BL = log_z_BL - jnp.mean(logits_BLV, axis=-1)
        loss_BL = (1 - smoothing) * nll_BL + smoothing * uniform_BL
    if config.z_loss > 0:
        loss_BL = loss_BL + config.z_loss * jnp.square(log_z_BL)
    correct_BL = (jnp.argmax(logits_BLV, axis=-1) == batch.targets).astype(jnp.float32)
    weights = batch.weights
    return LossSums(
        loss=jnp.sum(loss_BL * weights),
        nll=jnp.sum(nll_BL * weights),
        correct=jnp.sum(correct_BL * weights),
        weight=jnp.sum(weights),
    )
