"""Beam search over an encoder-decoder, with the explicit cache, in one program of fixed shapes.

A hypothesis is a sequence of at most T = max_new_tokens new tokens. It is finished by the end token or
by its T-th token. Its log-probability is the sum of those that the model gives to its tokens, out of all
entries of its vocabulary: what may not be chosen is left out without making the rest more probable. Its
score is that sum divided by a penalty of its length, which counts all new tokens: a forced prefix and
the end token too.

Every step extends the k alive hypotheses of a row by every token and takes the 2 k most probable of all
k V, of which at least k do not end. Those of the first k that end are finished, and compete by score with
what is finished already; the first k that do not end stay alive. Of equals the first wins: what was
finished earlier, else the better hypothesis so far, else the lower token. With one beam a step takes one
token only, the most probable, and the row ends with it: greedy decoding.

A row ends when no alive hypothesis can get a better score than the worst kept finished one, however
probable its further tokens are; so its outputs are those of a search that runs to the end. Only
`num_hypotheses` finished ones are kept, for others would not be given out. With a penalty that favours long
outputs that takes most of the T steps; with `exact=False` a row ends when it has `num_beams` finished ones and none
alive could get among them by ending at the next token, as in Hugging Face by default: sooner, and seldom different.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Source
from lm.decoding.inputs import Vocabulary, choosable, model_batch, pad_sources, place_cache, rows_for_mesh
from lm.decoding.ngrams import completes_repeat
from lm.errors import UserError
from lm.models.protocol import Cache, Model

PENALTIES = ("power", "gnmt")


@dataclass(frozen=True)
class BeamSettings:
    """What is searched for. Values other than the counts of beams, tokens and n-grams share a compiled program."""

    num_beams: int = 1  # hypotheses kept alive; 1 is greedy
    penalty: str = "power"  # length^a (as Hugging Face and fairseq) or gnmt: ((5 + length) / 6)^a (Wu 2016, eq. 14)
    length_penalty: float = 1.0  # the a: 0 for none, more for longer outputs, below 0 for shorter ones
    max_new_tokens: int = 128  # of a hypothesis, its prefix and end token included
    min_new_tokens: int = 0  # no end token before so many others, the prefix included
    no_repeat_ngram: int = 0  # no n-gram of so many tokens comes twice; 0: no such rule. A prefix may break it
    exact: bool = True  # search on until no hypothesis can win, and not only until none could win at once
    num_hypotheses: int = 1  # given out for each source, best first; at most num_beams

    def check(self) -> None:
        """Raises UserError at the first value out of range."""
        if self.num_beams < 1:
            raise UserError(f"num_beams={self.num_beams}: must be at least 1 (greedy).")
        if not 1 <= self.num_hypotheses <= self.num_beams:
            raise UserError(f"num_hypotheses={self.num_hypotheses}: must be from 1 to num_beams={self.num_beams}.")
        if self.penalty not in PENALTIES:
            raise UserError(f"penalty={self.penalty!r}: must be one of {', '.join(PENALTIES)}.")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens}: must be from 0 to max_new_tokens={self.max_new_tokens}."
            )
        if self.no_repeat_ngram < 0:
            raise UserError(f"no_repeat_ngram={self.no_repeat_ngram}: must be a number of tokens, or 0 for no rule.")
        if not -8 <= self.length_penalty <= 8:  # beyond, powers of long lengths leave the range of float32
            raise UserError(f"length_penalty={self.length_penalty}: must be between -8 and 8.")

    @property
    def num_kept(self) -> int:
        """Finished hypotheses that a search keeps, and compares the alive ones with."""
        return self.num_hypotheses if self.exact else self.num_beams

    def penalties(self) -> np.ndarray:
        """float32 (T,): what the log-probability of a hypothesis of 1, 2, ..., T tokens is divided by."""
        lengths_T = np.arange(1, self.max_new_tokens + 1, dtype=np.float64)
        base_T = lengths_T if self.penalty == "power" else (5 + lengths_T) / 6
        return (base_T**self.length_penalty).astype(np.float32)


@dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]  # new tokens, prefix included, with the end token if it was reached
    score: float  # log_probability over the penalty of the length
    log_probability: float


@flax.struct.dataclass
class Rules:
    """What the outputs must obey: arrays, so that other values need no other program."""

    forced_BT: Array  # int32: the tokens that every hypothesis of the row begins with, then -1
    used_B: Array  # bool: not a row that only fills up the batch
    penalties_T: Array  # float32, monotone
    min_new_tokens: Array  # int32 ()
    exact: Array  # bool ()


@flax.struct.dataclass
class Finished:
    """The n best finished hypotheses of each row, best first. A score of -inf: there is none."""

    tokens_BnT: Array  # int32, padding after the end
    lengths_Bn: Array  # int32
    log_probabilities_Bn: Array  # float32
    scores_Bn: Array  # float32


@flax.struct.dataclass
class Beams:
    """All that a step changes. The k alive hypotheses of a row are in order, the most probable first."""

    cache: Any
    length: Array  # int32 (): tokens made so far, of all that are alive
    tokens_BkT: Array  # int32
    log_probabilities_Bk: Array  # float32; -inf for one that is not alive
    finished: Finished


Step = Callable[[Array, Array, Any], tuple[Array, Any]]
Reorder = Callable[[Any, Array], Any]


def search(
    step: Step,
    reorder: Reorder,
    cache: Any,
    rules: Rules,
    vocabulary: Vocabulary,
    num_beams: int,
    num_hypotheses: int,
    no_repeat_ngram: int,
) -> Beams:
    """The state at the end. Pure and traceable; rows b k ... b k + k - 1 of R = B k are the beams of row b.

    Args:
        step: (tokens_R, position (), cache) -> (logits_RV float32, cache): feeds each hypothesis the token
            of this position (the first is bos) and gives the logits of the next.
        reorder: (cache, rows_R) -> cache in which row r is what row `rows_R[r]` was, one of the same b.
    """
    (B, T), k, n = rules.forced_BT.shape, num_beams, num_hypotheses
    pad_id, eos_id = vocabulary.pad_id, vocabulary.eos_id

    def close(beams: Beams) -> Beams:
        """No hypothesis stays alive in rows that it could not change any more."""
        # A log-probability only falls, so the best that can be is today's, at the length with the largest
        # penalty: penalties are monotone, so that is the next at which it may end, or the last.
        next_end = jnp.minimum(jnp.maximum(beams.length, rules.min_new_tokens), T - 1)
        last_end = jnp.where(rules.exact, T - 1, next_end)
        largest = jnp.maximum(rules.penalties_T[next_end], rules.penalties_T[last_end])
        best_B1 = beams.log_probabilities_Bk[:, :1] / largest
        open_B1 = best_B1 > beams.finished.scores_Bn[:, -1:]
        beams = dataclasses.replace(
            beams, log_probabilities_Bk=jnp.where(open_B1, beams.log_probabilities_Bk, -jnp.inf)
        )
        # All but the cache is small and wanted whole, by every process.
        whole = jax.tree.map(
            lambda x: nn.with_logical_constraint(x, (None,) * x.ndim), dataclasses.replace(beams, cache=None)
        )
        return dataclasses.replace(whole, cache=beams.cache)

    def is_unfinished(beams: Beams) -> Array:
        return (beams.length < T) & jnp.any(beams.log_probabilities_Bk > -jnp.inf)

    def extend(beams: Beams) -> Beams:
        t, tokens_RT = beams.length, beams.tokens_BkT.reshape(B * k, T)
        latest_R = jnp.take(tokens_RT, jnp.maximum(t - 1, 0), axis=1)
        logits_RV, cache = step(jnp.where(t > 0, latest_R, vocabulary.bos_id), t, beams.cache)
        V = logits_RV.shape[1]
        allowed_RV = (choosable(vocabulary, V) & ((jnp.arange(V) != eos_id) | (t >= rules.min_new_tokens)))[None]
        if no_repeat_ngram:
            allowed_RV = allowed_RV & ~completes_repeat(tokens_RT, t, no_repeat_ngram, V)
        forced_R1 = jnp.repeat(jnp.take(rules.forced_BT, t, axis=1), k)[:, None]
        allowed_RV = jnp.where(forced_R1 < 0, allowed_RV, jnp.arange(V)[None] == forced_R1)
        totals_RV = beams.log_probabilities_Bk.reshape(B * k, 1) + jax.nn.log_softmax(logits_RV)
        totals_RV = jnp.where(allowed_RV, totals_RV, -jnp.inf)

        # C candidates, the most probable first.
        C = min(2 * k, k * V) if k > 1 else 1
        totals_BC, places_BC = jax.lax.top_k(totals_RV.reshape(B, k * V), C)
        parents_BC, chosen_BC = places_BC // V, places_BC % V
        tokens_BCT = _take(beams.tokens_BkT, parents_BC).at[:, :, t].set(chosen_BC)
        ends_BC = (chosen_BC == eos_id) | (t == T - 1)

        ended_Bk = jnp.where(ends_BC, totals_BC, -jnp.inf)[:, :k]
        new = Finished(
            tokens_BnT=tokens_BCT[:, :k],
            lengths_Bn=jnp.broadcast_to(t + 1, (B, k)),
            log_probabilities_Bn=ended_Bk,
            scores_Bn=ended_Bk / rules.penalties_T[t],
        )
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), beams.finished, new)
        _, best_Bn = jax.lax.top_k(both.scores_Bn, n)
        finished = jax.tree.map(lambda x: _take(x, best_Bn), both)

        alive_Bk, stays_Bk = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, totals_BC), k)
        if k > 1:
            rows_Bk = jnp.arange(B)[:, None] * k + _take(parents_BC, stays_Bk)
            cache = reorder(cache, rows_Bk.reshape(B * k))
        return close(Beams(cache, t + 1, _take(tokens_BCT, stays_Bk), alive_Bk, finished))

    nothing = Finished(
        tokens_BnT=jnp.full((B, n, T), pad_id, jnp.int32),
        lengths_Bn=jnp.zeros((B, n), jnp.int32),
        log_probabilities_Bn=jnp.full((B, n), -jnp.inf),
        scores_Bn=jnp.full((B, n), -jnp.inf),
    )
    # The beams of a row begin alike: all but the first wait, until it has been extended in more than one way.
    first_Bk = rules.used_B[:, None] & (jnp.arange(k) == 0)[None]
    beams = Beams(
        cache=cache,
        length=jnp.zeros((), jnp.int32),
        tokens_BkT=jnp.full((B, k, T), pad_id, jnp.int32),
        log_probabilities_Bk=jnp.where(first_Bk, 0.0, -jnp.inf),
        finished=nothing,
    )
    return jax.lax.while_loop(is_unfinished, extend, close(beams))


def _take(x: Array, places_Bn: Array) -> Array:
    """Entries along axis 1, by row."""
    return jnp.take_along_axis(x, places_Bn.reshape(*places_Bn.shape, *(1,) * (x.ndim - 2)), axis=1)


@functools.partial(jax.jit, static_argnames=("model", "vocabulary", "num_beams", "num_hypotheses", "no_repeat_ngram"))
def search_model(
    model: Model,
    params: Any,
    source: Source,
    rules: Rules,
    vocabulary: Vocabulary,
    num_beams: int,
    num_hypotheses: int,
    no_repeat_ngram: int,
) -> Beams:
    """`search` with a model: the sources are encoded once, and shared by the beams of their row."""
    B, T = rules.forced_BT.shape
    # No target token yet: what stands in for one has segment 0, and the first token takes its slot.
    none_B1 = jnp.zeros((B, 1), jnp.int32)
    cache = model.empty_cache(B, T, source.tokens.shape[1])
    batch = model_batch(none_B1, none_B1, none_B1, source)
    cache = model.apply({"params": params}, batch, train=False, cache=cache).cache

    def step(tokens_R: Array, position: Array, cache: Cache) -> tuple[Array, Cache]:
        positions_R1 = jnp.broadcast_to(position, (tokens_R.shape[0], 1))
        batch = model_batch(tokens_R[:, None], positions_R1, jnp.ones_like(positions_R1))
        output = model.apply({"params": params}, batch, train=False, cache=cache)
        return output.logits[:, 0], place_cache(output.cache)

    def reorder(cache: Cache, rows_R: Array) -> Cache:
        return place_cache(cache.take_rows(rows_R))

    cache = place_cache(cache.repeat_rows(num_beams))
    beams = search(step, reorder, cache, rules, vocabulary, num_beams, num_hypotheses, no_repeat_ngram)
    return dataclasses.replace(beams, cache=None)  # its memory is free again


def beam_search(
    model: Model,
    params: Any,
    sources: Sequence[Sequence[int]],
    settings: BeamSettings,
    vocabulary: Vocabulary,
    prefixes: Sequence[Sequence[int]] | None = None,
    min_rows: int = 1,
    source_bucket: int | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses of each source, best first: `num_hypotheses`, or fewer if the rules leave fewer.

    There is always one: an empty one with score -inf where the rules leave none at all.

    Args:
        sources: token ids, end token included.
        prefixes: of each source the tokens that its outputs begin with, after bos; they may be of any
            length up to max_new_tokens, and empty. They are scored by the model like the rest.
        min_rows: with fewer sources the batch is filled up, to share the program of a full one.
        source_bucket: pad the sources to at least so many tokens, for the same reason.

    Call it under `on_mesh` when the parameters are sharded; on several processes, with equal arguments.
    Raises UserError for settings, sources or prefixes that do not fit the model.
    """
    settings.check()
    rows, T = rows_for_mesh(max(len(sources), min_rows)), settings.max_new_tokens
    max_length = model.max_length
    if T > max_length:
        raise UserError(
            f"max_new_tokens={T} is more than the model's {max_length} positions (config.model.max_length)."
        )
    if not sources:
        return []
    assert prefixes is None or len(prefixes) == len(sources), "a prefix for each source"
    rules = Rules(
        forced_BT=_forced(prefixes or [[]] * len(sources), rows, T, vocabulary),
        used_B=np.arange(rows) < len(sources),
        penalties_T=settings.penalties(),
        min_new_tokens=np.int32(settings.min_new_tokens),
        exact=np.bool_(settings.exact),
    )
    source = pad_sources(sources, rows, model.max_source_length, vocabulary.pad_id, source_bucket)
    counts = settings.num_beams, settings.num_kept, settings.no_repeat_ngram
    found: Finished = jax.tree.map(np.asarray, search_model(model, params, source, rules, vocabulary, *counts).finished)
    return [hypotheses(found, row)[: settings.num_hypotheses] for row in range(len(sources))]


def hypotheses(found: Finished, row: int) -> list[Hypothesis]:
    """Those of one row, best first; a single empty one if there is none."""
    scores_n, totals_n = found.scores_Bn[row].tolist(), found.log_probabilities_Bn[row].tolist()
    tokens = [found.tokens_BnT[row, i, :length].tolist() for i, length in enumerate(found.lengths_Bn[row])]
    there = [Hypothesis(*each) for each in zip(tokens, scores_n, totals_n, strict=True) if each[1] > -math.inf]
    return there or [Hypothesis([], -math.inf, -math.inf)]


def _forced(prefixes: Sequence[Sequence[int]], rows: int, T: int, vocabulary: Vocabulary) -> np.ndarray:
    """int32 (rows, T): the prefixes, and -1 after each."""
    forced_BT = np.full((rows, T), -1, np.int32)
    for number, prefix in enumerate(prefixes, start=1):
        if len(prefix) > T:
            raise UserError(f"prefix {number} has {len(prefix)} tokens, more than max_new_tokens={T}.")
        for token in prefix:
            if not 0 <= token < vocabulary.size or token == vocabulary.eos_id:
                raise UserError(f"prefix {number} holds token {token}, which is no token of a text.")
        forced_BT[number - 1, : len(prefix)] = prefix
    return forced_BT
