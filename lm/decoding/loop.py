"""Sampling from a model: the prefill and the loop over new tokens, with an explicit cache.

Prompts are padded at the right and every row has its own length: the token at position n of a row is in slot n of the
cache, independent of the other rows. The prefill puts each prompt except its last token into the cache, so it needs no
logits; each step then reads the last token of a row and chooses the next one. Shapes depend only on the bucket of the
longest prompt, the number of rows and the number of new tokens: calls with equal values share a compiled program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Source
from lm.decoding.inputs import model_batch, pad_rows, pad_sources, place_cache, rows_for_mesh
from lm.decoding.sampling import Sampling, choose, process_logits
from lm.decoding.vocabulary import Vocabulary, choosable
from lm.errors import UserError
from lm.models.protocol import Cache, Model

SMALLEST_BUCKET = 16


@flax.struct.dataclass
class DecodeState:
    """Everything that a step changes. T is the largest number of new tokens."""

    cache: Cache
    step: Array  # int32 (): tokens generated so far
    last_B: Array  # int32: the last token of the row, which is not in the cache yet
    lengths_B: Array  # int32: tokens of the row in the cache, and thus the slot of its last token
    ended_B: Array  # bool: after the end token, or when the cache is full
    num_new_B: Array  # int32: new tokens of the row, end token included
    tokens_BT: Array  # int32: the new tokens, padded after the end of the row
    keys_B: Array  # the key of the row; step t samples with this key and t
    seen_BV: Array | None  # bool: tokens that the row contains; None without a repetition penalty
    capacity: int = flax.struct.field(pytree_node=False)  # tokens that a row of the cache can hold


def check_fits(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_length: int) -> None:
    """Raises UserError unless every prompt fits into the model's positions together with its new tokens."""
    if not prompts:
        raise UserError("no prompt to continue; give at least one (it may be empty).")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
    tokens = len(prompts[longest])
    if tokens + max_new_tokens > max_length:
        left = max_length - tokens
        advice = f"generate at most {left} new tokens or shorten it" if left > 0 else "shorten it"
        raise UserError(
            f"prompt {longest + 1} has {tokens} tokens (begin token included), which with {max_new_tokens} new ones is "
            f"more than the model's {max_length} positions (config.model.max_length); {advice}."
        )


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    keys_B: Array,
    sampling: Sampling,
    vocabulary: Vocabulary,
    max_new_tokens: int,
    min_rows: int = 1,
    sources: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, with the end token if it was reached.

    A row also ends when it has `model.max_length` tokens (use `check_fits` to avoid that). Call it under
    `on_mesh` if the parameters are sharded; with several processes, call it in all of them with equal arguments.

    Args:
        prompts: token ids, begin token first. For an encoder-decoder, the beginning of the target.
        min_rows: a smaller batch is filled up to this size, to share the program of a full one.
        sources: of an encoder-decoder, one per prompt: token ids, end token included.
    """
    state = start(model, params, prompts, keys_B, sampling, vocabulary, max_new_tokens, min_rows, sources)
    state = advance(model, params, state, max_new_tokens, sampling, vocabulary)
    tokens_BT, num_new_B = np.asarray(state.tokens_BT), np.asarray(state.num_new_B)
    return [tokens_BT[row, : num_new_B[row]].tolist() for row in range(len(prompts))]


def stream(
    model: Model,
    params: Any,
    prompt: Sequence[int],
    key: Array,
    sampling: Sampling,
    vocabulary: Vocabulary,
    max_new_tokens: int,
) -> Iterator[int]:
    """Yields the tokens that `generate` returns for this prompt and key, each as soon as it is known."""
    state = start(model, params, [prompt], key[None], sampling, vocabulary, max_new_tokens)
    for step in range(max_new_tokens):
        state = advance(model, params, state, step + 1, sampling, vocabulary)
        num_new, ended = np.asarray(state.num_new_B)[0], np.asarray(state.ended_B)[0]
        if num_new > step:
            yield int(np.asarray(state.tokens_BT)[0, step])
        if ended:
            return


def start(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    keys_B: Array,
    sampling: Sampling,
    vocabulary: Vocabulary,
    max_new_tokens: int,
    min_rows: int = 1,
    sources: Sequence[Sequence[int]] | None = None,
) -> DecodeState:
    """The state before the first new token. Rows that only fill up the batch have ended already."""
    rows, max_length = rows_for_mesh(max(len(prompts), min_rows)), model.max_length
    sizes = [len(prompt) for prompt in prompts]
    bucket = max(SMALLEST_BUCKET, 1 << (max(sizes) - 1).bit_length())
    # A learned table has no entry beyond max_length, not even for padding.
    bucket, capacity = min(bucket, max_length), min(bucket + max_new_tokens, max_length)
    assert 0 < min(sizes) and max(sizes) <= bucket, (sizes, bucket)
    tokens_BL, segments_BL = pad_rows(prompts, (rows, bucket), vocabulary.pad_id)
    sizes_B = segments_BL.sum(axis=1, dtype=np.int32)
    if rows > len(prompts):
        keys_B = jnp.concatenate([keys_B, jnp.broadcast_to(keys_B[:1], (rows - len(prompts),))])
    source = None
    if sources is not None:
        assert len(sources) == len(prompts), (len(sources), len(prompts))
        source = pad_sources(sources, rows, model.max_source_length, vocabulary.pad_id)
    tracks_seen = sampling.repetition_penalty != 1
    return _prefill(
        model, params, tokens_BL, sizes_B, keys_B, source, vocabulary.pad_id, capacity, max_new_tokens, tracks_seen
    )


def _on_devices(state: DecodeState) -> DecodeState:
    """Constrains how a mesh splits the state, before and after each step alike."""
    cache = place_cache(state.cache)
    # The rest is small, and every process and the sampling need all of it.
    whole = jax.tree.map(lambda x: nn.with_logical_constraint(x, (None,) * x.ndim), state)
    return dataclasses.replace(whole, cache=cache)


@functools.partial(jax.jit, static_argnames=("model", "pad_id", "capacity", "max_new_tokens", "tracks_seen"))
def _prefill(
    model: Model,
    params: Any,
    tokens_BL: Array,
    sizes_B: Array,
    keys_B: Array,
    source: Source | None,
    pad_id: int,
    capacity: int,
    max_new_tokens: int,
    tracks_seen: bool,
) -> DecodeState:
    B, L = tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], (B, L))
    lengths_B = jnp.maximum(sizes_B - 1, 0)
    segments_BL = (positions_BL < lengths_B[:, None]).astype(jnp.int32)
    cache = model.empty_cache(B, capacity, 0 if source is None else source.tokens.shape[1])
    # The logits are not used, so the compiler omits the output layer.
    batch = model_batch(tokens_BL, positions_BL, segments_BL, source)
    cache = model.apply({"params": params}, batch, train=False, cache=cache).cache
    seen_BV = None
    if tracks_seen:
        V = model.vocab_size  # the index of padding is out of range, so that its update is dropped
        marked_BL = jnp.where(positions_BL < sizes_B[:, None], tokens_BL, V)
        seen_BV = jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], marked_BL].set(True, mode="drop")
    state = DecodeState(
        cache=cache,
        step=jnp.zeros((), jnp.int32),
        last_B=jnp.take_along_axis(tokens_BL, lengths_B[:, None], axis=1)[:, 0],
        lengths_B=lengths_B,
        ended_B=(sizes_B == 0) | (sizes_B >= capacity),
        num_new_B=jnp.zeros((B,), jnp.int32),
        tokens_BT=jnp.full((B, max_new_tokens), pad_id, jnp.int32),
        keys_B=keys_B,
        seen_BV=seen_BV,
        capacity=capacity,
    )
    return _on_devices(state)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "vocabulary"), donate_argnames=("state",))
def advance(
    model: Model, params: Any, state: DecodeState, until: Array, sampling: Sampling, vocabulary: Vocabulary
) -> DecodeState:
    """Generates until there are `until` new tokens (at most T) or all rows have ended. Reuses the memory of `state`."""
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
        lengths_B = state.lengths_B + segments_B
        seen_BV = state.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(chosen_B.shape[0]), chosen_B].set(True)
        state = dataclasses.replace(
            state,
            cache=output.cache,
            step=state.step + 1,
            last_B=chosen_B,
            lengths_B=lengths_B,
            ended_B=state.ended_B | (chosen_B == vocabulary.eos_id) | (lengths_B + 1 >= state.capacity),
            num_new_B=state.num_new_B + segments_B,
            tokens_BT=state.tokens_BT.at[:, state.step].set(chosen_B),
            seen_BV=seen_BV,
        )
        return _on_devices(state)

    return jax.lax.while_loop(is_unfinished, make_token, state)
