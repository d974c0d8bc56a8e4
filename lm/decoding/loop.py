"""Sampling from a model with an explicit cache: the prefill and the loop that generates tokens.

Prompts are padded on the right, and each row has its own length: the token at position n of a row is in slot n of the
cache, regardless of the other rows. The prefill writes all tokens of a prompt except the last to the cache, so it
needs no logits. Each step then reads the last token of each row and chooses the next token. Shapes depend only on the
length bucket of the longest prompt, the number of rows and the number of new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch
from lm.decoding.inputs import Rows, model_batch, pad_rows, pad_sources, place_whole, rows_for_mesh
from lm.decoding.sampling import Sampling, Vocabulary, choosable, choose, process_logits
from lm.errors import UserError
from lm.models.protocol import Model
from lm.parallel.mesh import place_cache

SMALLEST_BUCKET = 16


@flax.struct.dataclass
class DecodeState:
    """The state of the loop. T is the maximum number of new tokens."""

    cache: Any  # the model's Cache; None before the prefill
    step: Array  # int32 (): number of steps so far
    last_B: Array  # int32: the last token of each row, which is not yet in the cache
    lengths_B: Array  # int32: number of tokens in the cache, which is also the slot for the last token
    ended_B: Array  # bool: whether the row has reached a stop token or filled its cache
    num_new_B: Array  # int32: number of new tokens, including the stop token
    tokens_BT: Array  # int32: the new tokens, padded on the right
    keys_B: Array  # PRNG key of each row; step t samples with fold_in(key, t)
    seen_BV: Array | None  # bool: which tokens occur in the row; None if there is no repetition penalty
    capacity: int = flax.struct.field(pytree_node=False)  # number of tokens that a row of the cache can hold


def check_fits(prompts: Rows, max_new_tokens: int, max_length: int) -> None:
    """Raises UserError if there are no prompts, or if a prompt and its new tokens do not fit in the model's context."""
    if not prompts:
        raise UserError("there is no prompt to continue; pass at least one prompt, which may be empty.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} is invalid; it must be at least 1.")
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    tokens = len(prompts[longest])
    if tokens + max_new_tokens > max_length:
        left = max_length - tokens
        advice = f"generate at most {left} new tokens or shorten the prompt" if left > 0 else "shorten the prompt"
        raise UserError(
            f"prompt {longest + 1} has {tokens} tokens (including special tokens); adding {max_new_tokens} new tokens "
            f"exceeds the model's {max_length} positions (config.model.max_length); {advice}."
        )


@dataclass(frozen=True)
class Sampler:
    """Samples from a model.

    If the parameters are sharded, call the methods under `on_mesh`. All processes must pass the same arguments.
    """

    model: Model
    params: Any
    sampling: Sampling
    vocabulary: Vocabulary
    max_new_tokens: int

    def generate(self, prompts: Rows, keys_B: Array, min_rows: int = 1, sources: Rows | None = None) -> list[list[int]]:
        """Returns the new tokens of each prompt, including the stop token if one was reached.

        A row also ends when it has `model.max_length` tokens. Call `check_fits` first to ensure that no row gets this
        long.

        Args:
            prompts: the token ids of each prompt, starting with BOS if the vocabulary has it; for an encoder-decoder,
                the start of each target.
            min_rows: the number of rows to which smaller batches are padded, so that they share one compiled program.
            sources: for an encoder-decoder, the token ids of one source per prompt, including special tokens.
        """
        state = self.advance(self.start(prompts, keys_B, min_rows, sources), self.max_new_tokens)
        tokens_BT, num_new_B = np.asarray(state.tokens_BT), np.asarray(state.num_new_B)
        return [tokens_BT[row, : num_new_B[row]].tolist() for row in range(len(prompts))]

    def stream(self, prompt: Sequence[int], key: Array, source: Sequence[int] | None = None) -> Iterator[int]:
        """Yields the tokens that `generate` would return for these arguments, each as soon as it is chosen."""
        state = self.start([prompt], key[None], sources=None if source is None else [source])
        for step in range(self.max_new_tokens):
            state = self.advance(state, step + 1)
            if np.asarray(state.num_new_B)[0] > step:
                yield int(np.asarray(state.tokens_BT)[0, step])
            if np.asarray(state.ended_B)[0]:
                return

    def start(self, prompts: Rows, keys_B: Array, min_rows: int = 1, sources: Rows | None = None) -> DecodeState:
        """Returns the state before the first new token. Rows that only pad the batch are already marked as ended."""
        max_length, pad_id = self.model.max_length, self.vocabulary.pad_id
        rows = rows_for_mesh(max(len(prompts), min_rows))
        sizes = [len(prompt) for prompt in prompts]
        bucket = max(SMALLEST_BUCKET, 1 << (max(sizes) - 1).bit_length())
        # A learned position table has no entry beyond max_length, not even for padding.
        bucket, capacity = min(bucket, max_length), min(bucket + self.max_new_tokens, max_length)
        assert 0 < min(sizes) and max(sizes) <= bucket, (sizes, bucket)
        tokens_BL, segments_BL = pad_rows(prompts, (rows, bucket), pad_id)
        sizes_B = segments_BL.sum(axis=1, dtype=np.int32)
        lengths_B = np.maximum(sizes_B - 1, 0)
        if rows > len(prompts):
            keys_B = jnp.concatenate([keys_B, jnp.broadcast_to(keys_B[:1], (rows - len(prompts),))])
        assert sources is None or len(sources) == len(prompts), "one source per prompt"
        source = None if sources is None else pad_sources(sources, rows, self.model.max_source_length, pad_id)
        seen_BV = None
        if self.sampling.repetition_penalty != 1:
            seen_BV = np.zeros((rows, self.model.vocab_size), bool)
            for row, prompt in enumerate(prompts):
                seen_BV[row, list(prompt)] = True
        state = DecodeState(
            cache=None,
            step=np.int32(0),
            last_B=tokens_BL[np.arange(rows), lengths_B],
            lengths_B=lengths_B,
            ended_B=(sizes_B == 0) | (sizes_B >= capacity),
            num_new_B=np.zeros(rows, np.int32),
            tokens_BT=np.full((rows, self.max_new_tokens), pad_id, np.int32),
            keys_B=keys_B,
            seen_BV=seen_BV,
            capacity=capacity,
        )
        positions_BL = np.broadcast_to(np.arange(bucket, dtype=np.int32), (rows, bucket))
        in_cache_BL = (positions_BL < lengths_B[:, None]).astype(np.int32)
        return _prefill(self.model, self.params, model_batch(tokens_BL, positions_BL, in_cache_BL, source), state)

    def advance(self, state: DecodeState, until: int) -> DecodeState:
        """Generates tokens until step `until` (at most T) or until all rows have ended. Donates `state`'s buffers."""
        return _advance(self.model, self.params, state, until, self.sampling, self.vocabulary)


def _on_devices(state: DecodeState) -> DecodeState:
    """Constrains the sharding of the state. Only the cache is sharded, since every process needs all other arrays."""
    whole = place_whole(dataclasses.replace(state, cache=None))
    return dataclasses.replace(whole, cache=place_cache(state.cache))


@functools.partial(jax.jit, static_argnames="model")
def _prefill(model: Model, params: Any, batch: Batch, state: DecodeState) -> DecodeState:
    """Writes the batch's tokens to the cache. Returns the new state. The compiler removes the unused output layer."""
    source_length = 0 if batch.source is None else batch.source.tokens.shape[1]
    cache = model.empty_cache(batch.shape[0], state.capacity, source_length)
    cache = model.apply({"params": params}, batch, train=False, cache=cache).cache
    return _on_devices(dataclasses.replace(state, cache=cache))


@functools.partial(jax.jit, static_argnames=("model", "sampling", "vocabulary"), donate_argnames=("state",))
def _advance(
    model: Model, params: Any, state: DecodeState, until: int, sampling: Sampling, vocabulary: Vocabulary
) -> DecodeState:
    allowed_V = choosable(vocabulary, model.vocab_size)

    def is_unfinished(state: DecodeState) -> Array:
        return (state.step < until) & ~jnp.all(state.ended_B)

    def make_token(state: DecodeState) -> DecodeState:
        # A row that has ended writes padding into the same slot at every step.
        segments_B = (~state.ended_B).astype(jnp.int32)
        batch = model_batch(state.last_B[:, None], state.lengths_B[:, None], segments_B[:, None])
        output = model.apply({"params": params}, batch, train=False, cache=state.cache)
        logits_BV = jnp.where(allowed_V[None], output.logits[:, 0], -jnp.inf)
        logits_BV = process_logits(logits_BV, state.seen_BV, sampling)
        keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(state.keys_B, state.step)
        chosen_B = jnp.where(state.ended_B, vocabulary.pad_id, choose(logits_BV, keys_B, sampling))
        lengths_B, seen_BV = state.lengths_B + segments_B, state.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(chosen_B.shape[0]), chosen_B].set(True)
        state = dataclasses.replace(
            state,
            cache=output.cache,
            step=state.step + 1,
            last_B=chosen_B,
            lengths_B=lengths_B,
            ended_B=state.ended_B | vocabulary.ends(chosen_B) | (lengths_B + 1 >= state.capacity),
            num_new_B=state.num_new_B + segments_B,
            tokens_BT=state.tokens_BT.at[:, state.step].set(chosen_B),
            seen_BV=seen_BV,
        )
        return _on_devices(state)

    # Without this constraint, the compiler might shard the results of the loop again.
    return _on_devices(jax.lax.while_loop(is_unfinished, make_token, state))
