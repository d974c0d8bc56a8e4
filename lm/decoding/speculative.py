"""Speculative decoding: a small model drafts tokens, and one call to the large model checks them all.

Leviathan 2023, "Fast inference from Transformers via speculative decoding", algorithm 1; Chen 2023, "Accelerating large
language model decoding with speculative sampling". In each round, the draft model samples n tokens: token x_i comes
from its distribution q_i. In one call, the target model computes its distributions p_1, ..., p_{n+1}: p_i is its
distribution of the token after the text so far and x_1, ..., x_{i-1}. Drafted token x_i is accepted with probability
min(1, p_i(x_i) / q_i(x_i)). The first token that is not accepted is replaced with a sample from max(p_i - q_i, 0),
normalised, and the rest of the draft is dropped. If all tokens are accepted, one more token is sampled from p_{n+1}. A
round thus adds 1 to n + 1 tokens, which are distributed exactly as if they had been sampled from the target model, up
to rounding: one call with n + 1 tokens and n + 1 calls with one token each may sum terms in different orders.

p and q are the distributions after all sampling settings have been applied, such as the temperature and top-k
(`lm.decoding.sampling`). With temperature 0, they have probability 1 at the most probable token, so the output is that
of greedy decoding, unless rounding changes which of two almost equally probable tokens comes first. The cached keys and
values of dropped tokens are overwritten by the next round, before any token can attend to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.decoding.inputs import model_batch
from lm.decoding.sampling import Sampling, Vocabulary, choosable, choose, draw, process_logits
from lm.decoding.state import DecodeState, on_devices, with_tokens
from lm.models.protocol import Cache, Model


@flax.struct.dataclass
class PairCache:
    """The caches of both models. There is no beam search with drafts, so rows are never reordered."""

    target: Any
    draft: Any

    def repeat_rows(self, k: int) -> Self:
        return self._map(lambda cache: cache.repeat_rows(k))

    def axes(self) -> Self:
        return self._map(lambda cache: cache.axes())

    def _map(self, change: Callable[[Any], Any]) -> Self:
        return dataclasses.replace(self, target=change(self.target), draft=change(self.draft))


@dataclass(frozen=True)
class Pair:
    """A target model and a draft model with the same vocabulary, which `lm.decoding.loop` uses as a single model.

    The parameters are {"target": ..., "draft": ...}. The logits are those of the target model.
    """

    target: Model
    draft: Model

    @property
    def vocab_size(self) -> int:
        return self.target.vocab_size

    @property
    def max_length(self) -> int:
        return min(self.target.max_length, self.draft.max_length)

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> PairCache:
        sizes = batch_size, capacity, source_length
        return PairCache(self.target.empty_cache(*sizes), self.draft.empty_cache(*sizes))

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: Any = None, rngs: Any = None
    ) -> Output:
        output = self._apply("target", variables, batch, cache)
        draft = self._apply("draft", variables, batch, cache)
        return dataclasses.replace(output, cache=PairCache(output.cache, draft.cache))

    def _apply(self, name: str, variables: Any, batch: Batch, cache: PairCache) -> Output:
        params = {"params": variables["params"][name]}
        return getattr(self, name).apply(params, batch, train=False, cache=getattr(cache, name))


def make_tokens(
    model: Any, params: Any, sampling: Sampling, vocabulary: Vocabulary, num_drafted: int
) -> Callable[[DecodeState], DecodeState]:
    """Returns a function that adds 1 to num_drafted + 1 tokens to each row that has not ended.

    Args:
        model: a `Pair`.
    """
    n = num_drafted

    def logits_of(name: str, tokens_BL: Array, positions_BL: Array, segments_B: Array, cache: Cache) -> Any:
        segments_BL = jnp.broadcast_to(segments_B[:, None], tokens_BL.shape)
        each, variables = getattr(model, name), {"params": params[name]}
        output = each.apply(variables, model_batch(tokens_BL, positions_BL, segments_BL), train=False, cache=cache)
        allowed_V = choosable(vocabulary, each.vocab_size)
        # The models may have different numbers of logits beyond the vocabulary.
        return jnp.where(allowed_V[None, None], output.logits, -jnp.inf)[..., : vocabulary.size], output.cache

    def step(state: DecodeState) -> DecodeState:
        (B,), V = state.last_B.shape, vocabulary.size
        segments_B = (~state.ended_B).astype(jnp.int32)
        # For each row, the number of new tokens at the start of a round determines all random numbers of the round.
        keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.num_new_B)

        def draft(carry: Any, index: Array) -> Any:
            tokens_B, cache, seen_BV = carry
            positions_B1 = (state.lengths_B + index)[:, None]
            logits_B1V, cache = logits_of("draft", tokens_B[:, None], positions_B1, segments_B, cache)
            logits_BV = process_logits(logits_B1V[:, 0], seen_BV, sampling)
            chosen_B = choose(logits_BV, _fold(keys_B, index), sampling)
            seen_next_BV = None if seen_BV is None else seen_BV.at[jnp.arange(B), chosen_B].set(True)
            return (chosen_B, cache, seen_next_BV), (chosen_B, logits_BV, seen_BV)

        # The last token is drafted only because the call writes the token before it to the cache.
        seen_BV = None if state.seen_BV is None else state.seen_BV[:, :V]
        first = state.last_B, state.cache.draft, seen_BV
        (_, draft_cache, _), (drafted_MB, q_MBV, seen_MBV) = jax.lax.scan(draft, first, jnp.arange(n + 1))
        drafted_Bn, q_BnV = drafted_MB[:n].T, jnp.swapaxes(q_MBV[:n], 0, 1)

        tokens_BM = jnp.concatenate([state.last_B[:, None], drafted_Bn], axis=1)
        positions_BM = state.lengths_B[:, None] + jnp.arange(n + 1)[None]
        p_BMV, target_cache = logits_of("target", tokens_BM, positions_BM, segments_B, state.cache.target)
        seen_TV = None if seen_MBV is None else jnp.swapaxes(seen_MBV, 0, 1).reshape(-1, V)
        p_BMV = process_logits(p_BMV.reshape(-1, V), seen_TV, sampling).reshape(p_BMV.shape)

        p_BMV, q_BnV = probabilities(p_BMV, sampling), probabilities(q_BnV, sampling)
        new_BM, counts_B = accept(p_BMV, q_BnV, drafted_Bn, _fold(keys_B, n + 1))
        state = dataclasses.replace(state, cache=PairCache(target_cache, draft_cache))
        return on_devices(with_tokens(state, new_BM, counts_B * segments_B, vocabulary, model.max_length))

    return step


def probabilities(logits: Array, sampling: Sampling) -> Array:
    """Returns the distribution from which `choose` samples, over the last axis."""
    if sampling.greedy:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jax.nn.softmax(logits, axis=-1)


def accept(p_BMV: Array, q_BnV: Array, drafted_Bn: Array, keys_B: Array) -> tuple[Array, Array]:
    """Accepts or replaces drafted tokens. Returns the new tokens, int32 (B, M), and their number, from 1 to M = n + 1.

    Args:
        p_BMV: the distributions of the target model after the text so far and after each drafted token.
        q_BnV: the distributions from which the tokens were drafted.
    """
    (B, n), M = drafted_Bn.shape, drafted_Bn.shape[1] + 1
    p_Bn, q_Bn = (jnp.take_along_axis(each[:, :n], drafted_Bn[..., None], axis=2)[..., 0] for each in (p_BMV, q_BnV))
    uniform_Bn = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(_fold(keys_B, 0))
    accepted_Bn = uniform_Bn * q_Bn < p_Bn
    count_B = jnp.sum(jnp.cumprod(accepted_Bn.astype(jnp.int32), axis=1), axis=1)
    # There is no draft for the position after the last drafted token, so q is 0 there, and the token is sampled from p.
    q_BMV = jnp.concatenate([q_BnV, jnp.zeros_like(p_BMV[:, :1])], axis=1)
    at_B11 = count_B[:, None, None]
    p_BV, q_BV = (jnp.take_along_axis(each, at_B11, axis=1)[:, 0] for each in (p_BMV, q_BMV))
    rest_BV = jnp.log(jnp.maximum(p_BV - q_BV, 0.0))
    # If p equals q, a token can be rejected only because of rounding; p - q then leaves nothing to sample from.
    rest_BV = jnp.where(jnp.any(rest_BV > -jnp.inf, axis=1, keepdims=True), rest_BV, jnp.log(p_BV))
    next_B = draw(rest_BV, _fold(keys_B, 1))
    drafted_BM = jnp.concatenate([drafted_Bn, jnp.zeros((B, 1), jnp.int32)], axis=1)
    return jnp.where(jnp.arange(M)[None] == count_B[:, None], next_B[:, None], drafted_BM), count_B + 1


def _fold(keys_B: Array, number: Array | int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)
