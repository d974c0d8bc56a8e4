"""The losses of all objectives, with label smoothing and z-loss, as sums that the caller divides by a total weight."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output, VocabularyLogits
from lm.config import ObjectiveConfig
from lm.objectives.chunks import loss_in_chunks, num_chunks

_zero: Any = functools.partial(flax.struct.field, default_factory=functools.partial(jnp.zeros, (), jnp.float32))


@flax.struct.dataclass
class LossSums:
    """Sums over the tokens of a batch. Add the sums of all microbatches and devices before dividing by `weight`."""

    loss: Array = _zero()  # the training loss: cross-entropy with label smoothing and z-loss
    nll: Array = _zero()  # plain cross-entropy, in nats
    correct: Array = _zero()  # total weight of the tokens whose target is the most probable token
    weight: Array = _zero()  # sum of the weights
    # Sums for next-sentence prediction, to be divided by `pairs`.
    pair_nll: Array = _zero()
    pair_correct: Array = _zero()
    pairs: Array = _zero()
    # Sums over the texts of autoencoders.
    kl: Array = _zero()  # KL divergence of the posterior from the prior, in nats
    texts: Array = _zero()

    def __add__(self, other: LossSums) -> LossSums:
        return jax.tree.map(jnp.add, self, other)


def loss_sums(logits: Array | VocabularyLogits, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Returns the summed cross-entropy of a batch. The logits must be float32.

    Large `VocabularyLogits` are computed in chunks (objective.logit_chunks). Only `LossSums.loss` has a gradient; the
    other sums are for metrics.
    """
    of_tokens = functools.partial(_token_loss, config)
    if isinstance(logits, VocabularyLogits):
        count = num_chunks(config.logit_chunks, logits, batch.targets)
        if count > 1:
            return loss_in_chunks(logits, batch.targets, batch.weights, count, of_tokens)
        logits = logits.whole()
    return of_tokens(logits, batch.targets, batch.weights)


def _token_loss(config: ObjectiveConfig, logits_BLV: Array, targets_BL: Array, weights_BL: Array) -> LossSums:
    """Returns the summed cross-entropy of tokens.

    With label smoothing e over the whole vocabulary, the loss is (1 - e) nll + e mean_v(-log p_v) (Szegedy 2016). With
    smoothing over all entries except the target, as in fairseq, the loss is (1 - e) nll + e / (V - 1) sum_{v !=
    target}(-log p_v), which equals the first formula with e V / (V - 1) in place of e. The z-loss is config.z_loss *
    log(Z)^2 (Chowdhery 2022).
    """
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    # A sum, unlike an index, has a gradient that XLA computes together with that of log Z, in one pass.
    is_target_BLV = jnp.arange(logits_BLV.shape[-1])[None, None] == targets_BL[..., None]
    is_known_BL = (targets_BL >= 0) & (targets_BL < logits_BLV.shape[-1])  # otherwise, the loss must not look right
    target_logit_BL = jnp.where(is_known_BL, jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0.0), axis=-1), jnp.nan)
    loss_BL = nll_BL = log_z_BL - target_logit_BL
    if config.label_smoothing > 0:
        smoothing, V = config.label_smoothing, logits_BLV.shape[-1]
        if config.label_smoothing_over == "others":
            smoothing *= V / (V - 1)  # because 1 / V of the smoothed mass falls on the target itself
        uniform_BL = log_z_BL - jnp.mean(logits_BLV, axis=-1)
        loss_BL = (1 - smoothing) * nll_BL + smoothing * uniform_BL
    if config.z_loss > 0:
        loss_BL = loss_BL + config.z_loss * jnp.square(log_z_BL)
    correct_BL = _is_first_maximum(logits_BLV, targets_BL, target_logit_BL).astype(jnp.float32)
    loss, nll, correct = (jnp.sum(each_BL * weights_BL) for each_BL in (loss_BL, nll_BL, correct_BL))
    nll = jax.lax.stop_gradient(nll)  # as in `loss_in_chunks`
    return LossSums(loss, nll, correct, weight=jnp.sum(weights_BL))


def _is_first_maximum(logits_BLV: Array, targets_BL: Array, target_logit_BL: Array) -> Array:
    """Returns whether argmax would return the target, bool (B, L).

    Only maxima are computed, which takes a small fraction of the time of an argmax on a CPU.
    """
    earlier_BLV = jnp.arange(logits_BLV.shape[-1])[None, None] < targets_BL[..., None]
    largest_earlier_BL = jnp.max(jnp.where(earlier_BLV, logits_BLV, -jnp.inf), axis=-1)
    return (target_logit_BL == jnp.max(logits_BLV, axis=-1)) & (target_logit_BL > largest_earlier_BL)


def first_tokens(batch: Batch) -> Array:
    """Returns a mask, float32 (B, L): 1 at the first token of each segment, 0 elsewhere."""
    return ((batch.positions == 0) & (batch.segments > 0)).astype(jnp.float32)


def masked_loss(output: Output, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """Returns the summed cross-entropy of masked tokens and of next-sentence predictions, if there are any."""
    masked = batch
    if (indices_BP := output.indices) is not None:
        targets_BP, weights_BP = (jnp.take_along_axis(x, indices_BP, axis=1) for x in (batch.targets, batch.weights))
        masked = dataclasses.replace(batch, targets=targets_BP, weights=weights_BP)
    sums = loss_sums(output.scores, masked, config)
    if output.next_sentence_logits is None:
        return sums
    # The target at the first token of a segment is 1 if the second text follows the first (Devlin 2019).
    logits_BL2, first_BL = output.next_sentence_logits, first_tokens(batch)
    labels_BL = jnp.clip(batch.targets, 0, 1)
    log_p_BL2 = jax.nn.log_softmax(logits_BL2, axis=-1)
    nll_BL = -jnp.take_along_axis(log_p_BL2, labels_BL[..., None], axis=-1)[..., 0]
    correct_BL = (jnp.argmax(logits_BL2, axis=-1) == labels_BL).astype(jnp.float32)
    return dataclasses.replace(
        sums, pair_nll=jnp.sum(nll_BL * first_BL), pair_correct=jnp.sum(correct_BL * first_BL), pairs=jnp.sum(first_BL)
    )


def squared_error(logits_BL1: Array, batch: Batch) -> LossSums:
    """Returns the weighted sum of squared errors between the predicted values and the targets."""
    error_BL = jnp.square(logits_BL1[..., 0] - batch.targets.astype(jnp.float32))
    total = jnp.sum(error_BL * batch.weights)
    return LossSums(loss=total, nll=total, correct=jnp.zeros_like(total), weight=jnp.sum(batch.weights))


def span_weights(batch: Batch) -> Array:
    """Returns the weights that `span_loss` gives to the starts and ends of answers, float32 (2, B, L)."""
    return jnp.stack([0.5 * batch.weights * ((batch.targets >> side) & 1).astype(jnp.float32) for side in (0, 1)])


def span_loss(logits_BL2: Array, batch: Batch) -> LossSums:
    """Returns the summed cross-entropy of answer starts and ends, normalised over each segment (Devlin 2019).

    The targets are 1 at the start of an answer, 2 at the end, and 3 if both are the same token. Each answer has weight
    1: its start and its end contribute 0.5 each to `weight` and, if the model finds them, to `correct`.
    """
    same_BLS = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (batch.segments[:, None, :] > 0)
    sides = zip(jnp.moveaxis(logits_BL2, -1, 0), span_weights(batch), strict=True)
    return sum((choice_loss(scores_BL, same_BLS, weights_BL) for scores_BL, weights_BL in sides), LossSums())


def choice_loss(scores_BL: Array, candidates_BLS: Array, weights_BL: Array) -> LossSums:
    """Returns the summed cross-entropy of tokens that are each chosen from candidates by a softmax over scores.

    Args:
        candidates_BLS: bool; whether token s is among the candidates for token l, which include l itself.
        weights_BL: the weight of each chosen token; 0 for other tokens.
    """
    scores_BLS = jnp.where(candidates_BLS, scores_BL[:, None, :], jnp.finfo(jnp.float32).min)
    loss = jnp.sum((jax.nn.logsumexp(scores_BLS, axis=-1) - scores_BL) * weights_BL)
    best_BL = (scores_BL >= jnp.max(scores_BLS, axis=-1)).astype(jnp.float32)
    return LossSums(loss=loss, nll=loss, correct=jnp.sum(best_BL * weights_BL), weight=jnp.sum(weights_BL))


def real_rows(batch: Batch) -> Array:
    """Returns a mask, float32 (B,): 0 for rows of padding, 1 for all other rows."""
    return (batch.segments[:, 0] > 0).astype(jnp.float32)


def contrastive_loss(text_BD: Array, positive_BD: Array, batch: Batch, temperature: float) -> LossSums:
    """Returns the summed InfoNCE loss with in-batch negatives (van den Oord 2018).

    The loss is averaged over both directions (Radford 2021). The vectors must be normalised to length 1. Padding rows
    are used neither as texts nor as negatives; every other row has weight 1.
    """
    real_B = real_rows(batch)
    scores_BB = text_BD @ positive_BD.T / temperature
    bias_1B = jnp.where(real_B > 0, 0.0, jnp.finfo(jnp.float32).min)[None]
    own = jnp.arange(scores_BB.shape[0])
    loss = correct = jnp.zeros((), jnp.float32)
    for one_way_BB in (scores_BB, scores_BB.T):
        masked_BB = one_way_BB + bias_1B
        nll_B = jax.nn.logsumexp(masked_BB, axis=-1) - jnp.diagonal(one_way_BB)
        loss += 0.5 * jnp.sum(nll_B * real_B)
        correct += 0.5 * jnp.sum((jnp.argmax(masked_BB, axis=-1) == own) * real_B)
    return LossSums(loss=loss, nll=loss, correct=correct, weight=jnp.sum(real_B))
