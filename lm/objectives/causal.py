"""Causal language modelling: every token from those before it."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch
from lm.config import ObjectiveConfig


@flax.struct.dataclass
class LossSums:
    """Sums over the tokens of a batch; divide by `weight` once, after all microbatches and devices."""

    loss: Array  # what is minimised: cross-entropy with label smoothing and z-loss
    nll: Array  # plain cross-entropy, nats
    correct: Array  # targets that were the most probable token
    weight: Array  # sum of the weights

    def __add__(self, other: LossSums) -> LossSums:
        return jax.tree.map(jnp.add, self, other)


def zero_sums() -> LossSums:
    zero = jnp.zeros((), jnp.float32)
    return LossSums(loss=zero, nll=zero, correct=zero, weight=zero)


def features(tokens_RM: np.ndarray, segments_RM: np.ndarray, positions_RM: np.ndarray) -> Batch:
    """Rows of M = L + 1 stream tokens -> inputs and the targets one place later.

    A target counts only if it belongs to the same document as its input: the first token of a
    document (its begin token) is never predicted from the document before.
    """
    same_RL = (segments_RM[:, 1:] == segments_RM[:, :-1]) & (segments_RM[:, 1:] > 0)
    return Batch(
        tokens=tokens_RM[:, :-1],
        targets=np.where(same_RL, tokens_RM[:, 1:], 0).astype(np.int32),
        weights=same_RL.astype(np.float32),
        positions=positions_RM[:, :-1],
        segments=segments_RM[:, :-1],
    )


def loss_sums(logits_BLV: Array, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Summed loss of a batch; logits float32.

    With label smoothing e: (1 - e) nll + e mean_v(-log p_v), that is, e spread over all V entries
    (Szegedy 2016; not over V - 1 as in fairseq). z-loss: coefficient x log(Z)^2 (Chowdhery 2022).
    """
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_logit_BL = jnp.take_along_axis(logits_BLV, batch.targets[..., None], axis=-1)[..., 0]
    nll_BL = log_z_BL - target_logit_BL
    loss_BL = nll_BL
    if config.label_smoothing > 0:
        uniform_BL = log_z_BL - jnp.mean(logits_BLV, axis=-1)
        loss_BL = (1 - config.label_smoothing) * nll_BL + config.label_smoothing * uniform_BL
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
