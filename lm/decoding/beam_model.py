"""Beam search with an encoder-decoder: encodes sources, and searches for outputs of many sources at the same time.

Sources are encoded separately from the search, and finished searches are replaced with the searches of waiting sources
(`lm.decoding.rows`). The beams of a source share its cached keys and values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Source
from lm.decoding.beam import Beams, BeamSettings, Finished, Hypothesis, Rules, first_beams, search
from lm.decoding.inputs import Rows, longest_first, model_batch, pad_rows, pad_sources, place_whole, source_length
from lm.decoding.rows import (
    MARGIN,
    Report,
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
from lm.decoding.sampling import Vocabulary
from lm.errors import UserError
from lm.models.protocol import Cache, Model
from lm.parallel.mesh import place_cache


def beam_search(
    model: Model,
    params: Any,
    sources: Rows,
    settings: BeamSettings,
    vocabulary: Vocabulary,
    prefixes: Rows | None = None,
    max_rows: int = 0,
    report: Report | None = None,
) -> list[list[Hypothesis]]:
    """Returns the `num_hypotheses` best hypotheses of each source, best first, or fewer if only fewer are possible.

    Args:
        sources: the token ids of each source, including special tokens.
        prefixes: for each source, up to max_new_tokens tokens with which its outputs start, after the forced first
            token if there is one. The log-probability of a hypothesis includes its prefix.
        max_rows: the number of sources that are decoded at the same time, longest first; 0 means all. Programs are
            compiled for this number, even if there are fewer sources.

    If the parameters are sharded, call this function under `on_mesh`. All processes must pass the same arguments.
    Raises UserError if a setting or prefix is invalid or a source is too long for the model.
    """
    settings.check()
    T = settings.max_new_tokens
    if T > model.max_length:
        raise UserError(
            f"max_new_tokens={T} exceeds the model's {model.max_length} positions (config.model.max_length)."
        )
    if not sources:
        return []
    assert prefixes is None or len(prefixes) == len(sources), "one prefix per source"
    forced = _forced(prefixes or [[]] * len(sources), T, vocabulary)
    rows, group = sizes(len(sources), max_rows or len(sources))
    searches = Searches(model, params, sources, forced, settings, vocabulary, rows, group)
    for _ in run_all(searches, searches.order, rows, group):
        if report is not None:
            report(len(searches.found), len(sources))
    return [searches.found[number][: settings.num_hypotheses] for number in range(len(sources))]


class Searches:
    """The searches of a batch. See `lm.decoding.rows.Engine`."""

    def __init__(
        self,
        model: Model,
        params: Any,
        sources: Rows,
        forced: Rows,
        settings: BeamSettings,
        vocabulary: Vocabulary,
        rows: int,
        group: int,
    ) -> None:
        self.found: dict[int, list[Hypothesis]] = {}
        self.order = longest_first(sources)
        self._model, self._params, self._vocabulary, self._group = model, params, vocabulary, group
        self._sources, self._forced, self._settings = sources, forced, settings
        self._rules, self._rows = Rules.of(settings), rows
        self._longest = min(settings.max_new_tokens, model.max_length)
        self._source_lengths = np.zeros(rows, np.int32)
        self._capacity = capacity_for(1, self._longest)
        self._source_capacity = source_length(sources, model.max_source_length)
        self._beams = empty_beams(model, rows, *self._sizes, settings.max_new_tokens, settings.num_kept)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self._capacity, self._source_capacity, self._settings.num_beams

    def admit(self, rows: Sequence[int], inputs: Sequence[int]) -> None:
        model, vocabulary = self._model, self._vocabulary
        self._source_lengths[list(rows)] = [len(self._sources[number]) for number in inputs]
        self._fit(capacity_for(int(self._lengths().max(initial=0)) + MARGIN, self._longest))
        sources = [self._sources[number] for number in inputs]
        source = pad_sources(sources, self._group, model.max_source_length, vocabulary.pad_id)
        forced = [self._forced[number] for number in inputs]
        forced_FT, _ = pad_rows(forced, (self._group, self._settings.max_new_tokens), -1)
        rows_F = np.full(self._group, self._rows, np.int32)
        rows_F[: len(rows)] = rows
        self._beams = admit_sources(model, self._params, source, self._beams, forced_FT, rows_F, vocabulary.pad_id)

    def run(self, min_alive: int) -> np.ndarray:
        settings = self._settings
        while True:
            limits = np.int32(min_alive), np.int32(self._capacity)
            arguments = self._rules, self._vocabulary, settings.no_repeat_ngram, *limits
            self._beams = search_model(self._model, self._params, self._beams, *arguments)
            alive_B = np.asarray(self._beams.alive_B)
            if alive_B.sum() <= min_alive:
                self._kept = jax.tree.map(np.asarray, self._beams.finished)
                self._source_lengths[~alive_B] = 0
                return alive_B
            self._fit(capacity_for(self._capacity + 1, self._longest))

    def finish(self, row: int, number: int) -> None:
        self.found[number] = hypotheses(self._kept, row)

    def _lengths(self) -> np.ndarray:
        """Returns the number of tokens in each row that is alive."""
        return np.asarray(self._beams.lengths_B)[np.asarray(self._beams.alive_B)]

    def _fit(self, capacity: int) -> None:
        """Changes the capacity of the cache, and adapts the capacity for sources to the longest source."""
        before = self._sizes
        self._capacity = capacity
        self._source_capacity = source_capacity_for(int(self._source_lengths.max()), self._source_capacity)
        if self._sizes != before:
            cache = resized(self._model, self._beams.cache, self._rows, *self._sizes)
            self._beams = dataclasses.replace(self._beams, cache=cache)


@functools.partial(jax.jit, static_argnums=tuple(range(7)))
def empty_beams(
    model: Model, rows: int, capacity: int, source_capacity: int, num_beams: int, longest: int, num_kept: int
) -> Beams:
    """Returns the state of a batch in which no search has started."""
    forced_BT, used_B = jnp.full((rows, longest), -1, jnp.int32), jnp.zeros(rows, bool)
    beams = place_whole(first_beams(None, forced_BT, used_B, num_beams, num_kept, pad_id=0))
    return dataclasses.replace(beams, cache=empty_rows(model, rows, capacity, source_capacity, num_beams))


@functools.partial(jax.jit, static_argnames=("model", "pad_id"), donate_argnames="beams")
def admit_sources(
    model: Model, params: Any, source: Source, beams: Beams, forced_FT: Array, rows_F: Array, pad_id: int
) -> Beams:
    """Encodes F sources, and starts their searches in the given rows."""
    (_, k, _), (_, n) = beams.tokens_BkT.shape, beams.finished.scores_Bn.shape
    # There is no target token yet: the placeholder has segment 0, and the first token overwrites it in the cache.
    none_F1 = jnp.zeros((rows_F.shape[0], 1), jnp.int32)
    new = prefill(model, params, model_batch(none_F1, none_F1, none_F1, source), 1, k)
    first = first_beams(None, forced_FT, jnp.ones(rows_F.shape, bool), k, n, pad_id)
    others = insert_state(dataclasses.replace(beams, cache=None), first, rows_F)
    return dataclasses.replace(place_whole(others), cache=insert(beams.cache, new, rows_F))


@functools.partial(jax.jit, static_argnames=("model", "vocabulary", "no_repeat_ngram"), donate_argnames="beams")
def search_model(
    model: Model,
    params: Any,
    beams: Beams,
    rules: Rules,
    vocabulary: Vocabulary,
    no_repeat_ngram: int,
    min_alive: Array,
    capacity: Array,
) -> Beams:
    """Runs `search` with a model."""

    def step(tokens_R: Array, positions_R: Array, cache: Cache) -> tuple[Array, Cache]:
        batch = model_batch(tokens_R[:, None], positions_R[:, None], jnp.ones_like(positions_R[:, None]))
        output = model.apply({"params": params}, batch, train=False, cache=cache)
        return output.logits[:, 0], place_cache(output.cache)

    def reorder(cache: Cache, rows_R: Array) -> Cache:
        return place_cache(cache.take_rows(rows_R))

    beams = search(step, reorder, beams, rules, vocabulary, no_repeat_ngram, min_alive, capacity)
    # Replicates the results, because the compiler might otherwise shard them.
    whole = place_whole(dataclasses.replace(beams, cache=None))
    return dataclasses.replace(whole, cache=place_cache(beams.cache))


def hypotheses(found: Finished, row: int) -> list[Hypothesis]:
    """Returns the hypotheses of one row, best first, or an empty hypothesis with score -inf if there are none."""
    existing = [
        Hypothesis(found.tokens_BnT[row, i, :length].tolist(), score, float(found.log_probabilities_Bn[row, i]))
        for i, (length, score) in enumerate(zip(found.lengths_Bn[row], found.scores_Bn[row].tolist(), strict=True))
        if score > -math.inf
    ]
    return existing or [Hypothesis([], -math.inf, -math.inf)]


def _forced(prefixes: Rows, T: int, vocabulary: Vocabulary) -> list[list[int]]:
    """Returns each prefix after the forced first token, if there is one. Raises UserError if a prefix is invalid."""
    first = vocabulary.output_start[1:]
    for number, prefix in enumerate(prefixes, start=1):
        if len(first) + len(prefix) > T:
            raise UserError(f"prefix {number} has {len(first) + len(prefix)} tokens, more than max_new_tokens={T}.")
        for token in prefix:
            if not 0 <= token < vocabulary.size or token in vocabulary.stops:
                raise UserError(f"prefix {number} contains token {token}, which cannot occur within a text.")
    return [[*first, *prefix] for prefix in prefixes]
