"""The loss of every objective, from what the model gives: sums over a batch, to be divided once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import ObjectiveConfig
from lm.objectives.cross_entropy import LossSums, loss_sums


def masked_loss(output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Returns the cross-entropy of masked tokens and, where the model gives it, that of next sentences."""
    sums = loss_sums(output.logits, _at_places(batch, output.indices), config)
    if output.next_sentence_logits is None:
        return sums
    return dataclasses.replace(sums, **_pair_sums(output.next_sentence_logits, batch))


def _at_places(batch: Batch, places_BP: Array | None) -> Batch:
    """Targets and weights of those tokens."""
    if places_BP is None:
        return batch
    targets_BP, weights_BP = (jnp.take_along_axis(x, places_BP, axis=1) for x in (batch.targets, batch.weights))
    return dataclasses.replace(batch, targets=targets_BP, weights=weights_BP)


def first_tokens(batch: Batch) -> Array:
    """float32 (B, L): 1 at the first token of each segment."""
    return ((batch.positions == 0) & (batch.segments > 0)).astype(jnp.float32)


def _pair_sums(pair_logits_BL2: Array, batch: Batch) -> dict[str, Array]:
    """Of whether the second text follows the first (Devlin 2019), at each first token."""
    first_BL = first_tokens(batch)
    labels_BL = jnp.clip(batch.targets, 0, 1)
    log_p_BL2 = jax.nn.log_softmax(pair_logits_BL2, axis=-1)
    nll_BL = -jnp.take_along_axis(log_p_BL2, labels_BL[..., None], axis=-1)[..., 0]
    correct_BL = (jnp.argmax(pair_logits_BL2, axis=-1) == labels_BL).astype(jnp.float32)
    return {
        "pair_nll": jnp.sum(nll_BL * first_BL),
        "pair_correct": jnp.sum(correct_BL * first_BL),
        "pairs": jnp.sum(first_BL),
    }


def squared_error(logits_BL1: Array, batch: Batch) -> LossSums:
    """Squared error of one number for each weighted token; targets are float32."""
    error_BL = jnp.square(logits_BL1[..., 0] - batch.targets.astype(jnp.float32))
    total = jnp.sum(error_BL * batch.weights)
    return LossSums(loss=total, nll=total, correct=jnp.zeros_like(total), weight=jnp.sum(batch.weights))


def span_loss(logits_BL2: Array, batch: Batch) -> LossSums:
    """Mean of the two cross-entropies of an answer's start and end among all tokens of its segment (Devlin 2019).

    Targets are 1 at the start, 2 at the end, 3 where both are one token; a weight of 1 for an answer in all.
    Correct counts starts and ends by half.
    """
    same_BLS = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (batch.segments[:, None, :] > 0)
    loss = correct = weight = jnp.zeros((), jnp.float32)
    for side in (0, 1):
        scores_BL = logits_BL2[..., side]
        scores_BLS = jnp.where(same_BLS, scores_BL[:, None, :], jnp.finfo(jnp.float32).min)
        nll_BL = jax.nn.logsumexp(scores_BLS, axis=-1) - scores_BL
        best_BL = (scores_BL >= jnp.max(scores_BLS, axis=-1)).astype(jnp.float32)
        chosen_BL = 0.5 * batch.weights * ((batch.targets >> side) & 1).astype(jnp.float32)
        loss += jnp.sum(nll_BL * chosen_BL)
        correct += jnp.sum(best_BL * chosen_BL)
        weight += jnp.sum(chosen_BL)
    return LossSums(loss=loss, nll=loss, correct=correct, weight=weight)


def contrastive_loss(text_BD: Array, partner_BD: Array, batch: Batch, temperature: float) -> LossSums:
    """Cross-entropy of each text's own partner among the partners of the whole batch, and the other way round.

    InfoNCE with in-batch negatives (van den Oord 2018; both directions as Radford 2021), of vectors of length 1.
    Rows of padding are neither texts nor negatives. A row of weight 1 in all counts one.
    """
    real_B = (batch.segments[:, 0] > 0).astype(jnp.float32)
    scores_BB = text_BD @ partner_BD.T / temperature
    bias_1B = jnp.where(real_B > 0, 0.0, jnp.finfo(jnp.float32).min)[None]
    own = jnp.arange(scores_BB.shape[0])
    loss = correct = jnp.zeros((), jnp.float32)
    for one_way_BB in (scores_BB, scores_BB.T):
        masked_BB = one_way_BB + bias_1B
        nll_B = jax.nn.logsumexp(masked_BB, axis=-1) - jnp.diagonal(one_way_BB)
        loss += 0.5 * jnp.sum(nll_B * real_B)
        correct += 0.5 * jnp.sum((jnp.argmax(masked_BB, axis=-1) == own) * real_B)
    return LossSums(loss=loss, nll=loss, correct=correct, weight=jnp.sum(real_B))


def token_weight(batch: Batch) -> Array:
    """Returns the sum of the weights of a batch, at least 1."""
    return jnp.maximum(jnp.sum(batch.weights), 1.0)


def span_weight(batch: Batch) -> Array:
    """Returns the weight that `span_loss` finds: half of that of each start and each end, at least 1."""
    ends = (batch.targets & 1) + ((batch.targets >> 1) & 1)
    return jnp.maximum(jnp.sum(0.5 * batch.weights * ends), 1.0)


def row_weight(batch: Batch) -> Array:
    """Returns the number of rows that are not padding, at least 1."""
    return jnp.maximum(jnp.sum((batch.segments[:, 0] > 0).astype(jnp.float32)), 1.0)
