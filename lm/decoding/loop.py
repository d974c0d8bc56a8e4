"""Sampling from a model with an explicit cache: the prefill and the loop that generates tokens.

Prompts are padded on the right, and each row has its own length: the token at position n of a row is in slot n of the
cache, regardless of the other rows. The prefill writes all tokens of a prompt except the last to the cache, so it
needs no logits. Each step then reads the last token of each row and chooses the next token. Shapes depend only on the
length bucket of the prompts, the number of rows, the number of new tokens and the capacity of the cache, which depends
on the longest row. Once a row has ended, `Sampler.generate` replaces it with a waiting prompt (`lm.decoding.rows`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch
from lm.decoding.inputs import Rows, model_batch, pad_rows, pad_sources, rows_for_mesh, source_length
from lm.decoding.rows import (
    MARGIN,
    capacity_for,
    empty_rows,
    insert,
    insert_state,
    prefill,
    resized,
    run_all,
    sizes,
    source_capacity_for,
)
from lm.decoding.sampling import Sampling, Vocabulary, choosable, choose, process_logits
from lm.decoding.speculative import make_tokens
from lm.decoding.state import DecodeState, on_devices, with_tokens
from lm.errors import UserError
from lm.models.protocol import Model

SMALLEST_BUCKET = 16


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
    draft_tokens: int = 0  # number of tokens drafted per round, if the model is a `lm.decoding.speculative.Pair`

    def generate(self, prompts: Rows, keys_B: Array, max_rows: int = 0, sources: Rows | None = None) -> list[list[int]]:
        """Returns the new tokens of each prompt, including the stop token if one was reached.

        A row also ends when it has `model.max_length` tokens. Call `check_fits` first to ensure that no row becomes
        this long.

        Args:
            prompts: the token ids of each prompt, starting with BOS if the vocabulary has one; for an encoder-decoder,
                the start of each target.
            max_rows: the number of prompts that are continued at the same time; 0 means all. Programs are compiled for
                this number, even if there are fewer prompts.
            sources: for an encoder-decoder, the token ids of one source per prompt, including special tokens.
        """
        found = dict(self.generate_each(prompts, keys_B, max_rows, sources))
        return [found[number] for number in range(len(prompts))]

    def generate_each(
        self, prompts: Rows, keys_B: Array, max_rows: int = 0, sources: Rows | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """Yields the index of each prompt and the tokens that `generate` would return, as soon as they are complete.

        Prompts are started in the given order.
        """
        rows, group = sizes(len(prompts), max_rows or len(prompts))
        samples = Samples(self, prompts, keys_B, sources, rows, group)
        for numbers in run_all(samples, range(len(prompts)), rows, group):
            yield from ((number, samples.found.pop(number)) for number in numbers)

    def stream(self, prompt: Sequence[int], key: Array, source: Sequence[int] | None = None) -> Iterator[int]:
        """Yields the tokens that `generate` would return for these arguments, each as soon as it is chosen."""
        state = self.start([prompt], key[None], sources=None if source is None else [source])
        for step in range(self.max_new_tokens):
            state = self.advance(state, step + 1)
            if np.asarray(state.num_new_B)[0] > step:
                yield int(np.asarray(state.tokens_BT)[0, step])
            if np.asarray(state.ended_B)[0] and np.asarray(state.num_new_B)[0] <= step + 1:
                return

    def start(self, prompts: Rows, keys_B: Array, min_rows: int = 1, sources: Rows | None = None) -> DecodeState:
        """Returns the state before the first new token.

        Args:
            min_rows: the batch is padded to this number of rows, so that batches of different sizes share a program.
                Rows that only pad the batch are already marked as ended.
        """
        batch, state = self.inputs(prompts, keys_B, rows_for_mesh(max(len(prompts), min_rows)), sources)
        capacity = capacity_for(max(map(len, prompts)), self.model.max_length)
        return _prefill(self.model, self.params, batch, state, capacity)

    def inputs(self, prompts: Rows, keys_B: Array, rows: int, sources: Rows | None = None) -> tuple[Batch, DecodeState]:
        """Returns the batch for the prefill and the state before the prefill, both padded with rows that have ended."""
        max_length, pad_id = self.model.max_length, self.vocabulary.pad_id
        lengths = [len(prompt) for prompt in prompts]
        # A learned position table has no entries beyond max_length, not even for padding.
        bucket = min(max(SMALLEST_BUCKET, 1 << (max(lengths) - 1).bit_length()), max_length)
        assert 0 < min(lengths) and max(lengths) <= bucket, (lengths, bucket)
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
            last_B=tokens_BL[np.arange(rows), lengths_B],
            lengths_B=lengths_B,
            ended_B=(sizes_B == 0) | (sizes_B >= max_length),
            num_new_B=np.zeros(rows, np.int32),
            tokens_BT=np.full((rows, self.max_new_tokens), pad_id, np.int32),
            keys_B=keys_B,
            seen_BV=seen_BV,
            capacity=np.int32(0),
            source_capacity=0 if source is None else source.tokens.shape[1],
        )
        positions_BL = np.broadcast_to(np.arange(bucket, dtype=np.int32), (rows, bucket))
        in_cache_BL = (positions_BL < lengths_B[:, None]).astype(np.int32)
        return model_batch(tokens_BL, positions_BL, in_cache_BL, source), state

    def advance(self, state: DecodeState, until: int, min_alive: int = 0) -> DecodeState:
        """Generates tokens until at most `min_alive` rows are alive. Donates the buffers of `state`.

        A row is alive if it has not ended and has fewer than `until` new tokens (at most T). If tokens are drafted, a
        row may get more than `until` tokens.
        """
        while True:
            limits = np.int32(until), np.int32(min_alive)
            settings = self.sampling, self.vocabulary, self.draft_tokens
            state = _advance(self.model, self.params, state, *limits, *settings)
            alive_B = ~np.asarray(state.ended_B) & (np.asarray(state.num_new_B) < until)
            if alive_B.sum() <= min_alive:
                return state
            state = self.with_capacity(state, int(state.capacity) + 1 + self.draft_tokens)  # the cache is full

    def with_capacity(self, state: DecodeState, length: int, source_capacity: int | None = None) -> DecodeState:
        """Returns the state with a cache for rows of `length` tokens and, if given, with a new capacity for sources."""
        capacity = capacity_for(length, self.model.max_length)
        source_capacity = state.source_capacity if source_capacity is None else source_capacity
        if (capacity, source_capacity) == (int(state.capacity), state.source_capacity):
            return state
        cache = resized(self.model, state.cache, state.last_B.shape[0], capacity, source_capacity)
        return dataclasses.replace(state, cache=cache, capacity=np.int32(capacity), source_capacity=source_capacity)


class Samples:
    """The continuations of a batch. See `lm.decoding.rows.Engine`."""

    def __init__(
        self, sampler: Sampler, prompts: Rows, keys_B: Array, sources: Rows | None, rows: int, group: int
    ) -> None:
        self.found: dict[int, list[int]] = {}
        self._sampler, self._prompts, self._keys_B, self._sources = sampler, prompts, keys_B, sources
        self._group, model = group, sampler.model
        self._source_lengths = np.zeros(rows, np.int32)
        source_capacity = 0 if sources is None else source_length(sources, model.max_source_length)
        capacity = capacity_for(1, model.max_length)
        # A batch of placeholder prompts that have already ended and occupy no slots.
        _, state = sampler.inputs([[0]] * rows, jnp.broadcast_to(keys_B[:1], (rows,)), rows)
        self._state = dataclasses.replace(
            state,
            cache=empty_rows(model, rows, capacity, source_capacity),
            ended_B=np.ones(rows, bool),
            capacity=np.int32(capacity),
            source_capacity=source_capacity,
        )

    def admit(self, rows: Sequence[int], inputs: Sequence[int]) -> None:
        prompts = [self._prompts[number] for number in inputs]
        sources = None if self._sources is None else [self._sources[number] for number in inputs]
        if sources is not None:
            self._source_lengths[list(rows)] = [*map(len, sources)]
        batch, new = self._sampler.inputs(prompts, self._keys_B[np.array(inputs)], self._group, sources)
        lengths_B, ended_B = np.asarray(self._state.lengths_B), np.asarray(self._state.ended_B)
        drafted = self._sampler.draft_tokens  # a step also needs slots for these tokens
        longest_alive = int(lengths_B[~ended_B].max(initial=0)) + max(MARGIN, 1 + drafted)
        longest = max(max(map(len, prompts)) + drafted, longest_alive, batch.shape[1])
        source_capacity = source_capacity_for(int(self._source_lengths.max()), self._state.source_capacity)
        state = self._sampler.with_capacity(self._state, longest, source_capacity)
        rows_F = np.full(self._group, len(ended_B), np.int32)
        rows_F[: len(rows)] = rows
        self._state = _admit(self._sampler.model, self._sampler.params, batch, state, new, rows_F)

    def run(self, min_alive: int) -> np.ndarray:
        self._state = self._sampler.advance(self._state, self._sampler.max_new_tokens, min_alive)
        self._tokens_BT, self._num_new_B = np.asarray(self._state.tokens_BT), np.asarray(self._state.num_new_B)
        alive_B = ~np.asarray(self._state.ended_B)
        self._source_lengths[~alive_B] = 0
        return alive_B

    def finish(self, row: int, number: int) -> None:
        self.found[number] = self._tokens_BT[row, : self._num_new_B[row]].tolist()


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def _prefill(model: Model, params: Any, batch: Batch, state: DecodeState, capacity: int) -> DecodeState:
    """Writes the batch's tokens to a new cache. Returns the new state."""
    cache = prefill(model, params, batch, capacity)
    return on_devices(dataclasses.replace(state, cache=cache, capacity=jnp.int32(capacity)))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="state")
def _admit(model: Model, params: Any, batch: Batch, state: DecodeState, new: DecodeState, rows_F: Array) -> DecodeState:
    """Writes the tokens of F new rows to the cache, replacing the rows `rows_F`. `new` has no cache."""
    cache = insert(state.cache, prefill(model, params, batch, batch.shape[1]), rows_F)
    old, new = (dataclasses.replace(each, cache=None, capacity=None, source_capacity=0) for each in (state, new))
    changed = insert_state(old, new, rows_F)
    kept = {"capacity": state.capacity, "source_capacity": state.source_capacity}
    return on_devices(dataclasses.replace(changed, cache=cache, **kept))


@functools.partial(
    jax.jit, static_argnames=("model", "sampling", "vocabulary", "draft_tokens"), donate_argnames=("state",)
)
def _advance(
    model: Model,
    params: Any,
    state: DecodeState,
    until: Array,
    min_alive: Array,
    sampling: Sampling,
    vocabulary: Vocabulary,
    draft_tokens: int,
) -> DecodeState:
    arguments = params, sampling, vocabulary
    step = make_tokens(model, *arguments, draft_tokens) if draft_tokens else make_token(model, *arguments)

    def is_unfinished(state: DecodeState) -> Array:
        alive_B = ~state.ended_B & (state.num_new_B < until)
        # A step writes 1 + draft_tokens tokens to the cache. Those beyond the last position of the model are not used.
        # Rows that have `until` tokens, but have not ended, continue to grow until the others have as many.
        room = jnp.where(state.capacity < model.max_length, state.capacity - draft_tokens, state.capacity)
        fits = jnp.all(jnp.where(state.ended_B, 0, state.lengths_B) < room)
        return (jnp.sum(alive_B) > min_alive) & fits

    # Without this constraint, the compiler might choose a different sharding for the results of the loop.
    return on_devices(jax.lax.while_loop(is_unfinished, step, state))


def make_token(
    model: Model, params: Any, sampling: Sampling, vocabulary: Vocabulary
) -> Callable[[DecodeState], DecodeState]:
    """Returns a function that adds one token to each row that has not ended."""
    allowed_V = choosable(vocabulary, model.vocab_size)

    def step(state: DecodeState) -> DecodeState:
        # A row that has ended writes padding into the same slot at every step.
        segments_B = (~state.ended_B).astype(jnp.int32)
        batch = model_batch(state.last_B[:, None], state.lengths_B[:, None], segments_B[:, None])
        output = model.apply({"params": params}, batch, train=False, cache=state.cache)
        logits_BV = jnp.where(allowed_V[None], output.logits[:, 0], -jnp.inf)
        logits_BV = process_logits(logits_BV, state.seen_BV, sampling)
        keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.num_new_B)
        chosen_B = choose(logits_BV, keys_B, sampling)
        state = dataclasses.replace(state, cache=output.cache)
        return on_devices(with_tokens(state, chosen_B[:, None], segments_B, vocabulary, model.max_length))

    return step
