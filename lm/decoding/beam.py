"""Beam search with an encoder-decoder and an explicit cache, as one compiled program with fixed shapes.

A hypothesis is a sequence of at most T = max_new_tokens new tokens, which ends with a stop token such as EOS or with
the T-th token. The log-probability of a hypothesis is the sum of its tokens' log-probabilities. Token probabilities are
normalised over the model's whole vocabulary, so excluding a token does not make the others more probable. The score is
the log-probability divided by a length penalty. The length includes a forced prefix and the stop token. The forced
first token of a vocabulary is included in the length but not in the log-probability, as in Hugging Face.

Each step extends the k live hypotheses of a row by every token and takes the (s + 1) * k most probable of the k * V
candidates, where s is the number of stop tokens. At least k of these do not end with a stop token. Among the first k
candidates, those that end become finished hypotheses and compete by score with the hypotheses that finished earlier.
The first k candidates that do not end stay alive. Ties go to the hypothesis that finished earlier, then to the
extension of the more probable hypothesis, then to the lower token id. With one beam, this is greedy decoding: each step
takes the most probable token.

A row ends when no live hypothesis could beat the worst finished hypothesis that is kept, even if all its further tokens
had probability 1. Searching all T steps would therefore not change the outputs. Only the `num_hypotheses` finished
hypotheses to be returned are kept. If the penalty favours long outputs, most of the T steps are needed. If `exact` is
false, a row ends once it has `num_beams` finished hypotheses and no live hypothesis would displace any of them if it
ended at the next token. This rule, Hugging Face's default, stops the search earlier and rarely changes the outputs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Source
from lm.decoding.inputs import (
    Rows,
    check_settings,
    model_batch,
    pad_rows,
    pad_sources,
    place_whole,
    rows_for_mesh,
)
from lm.decoding.sampling import Vocabulary, choosable, completes_repeat
from lm.errors import UserError
from lm.models.protocol import Cache, Model
from lm.parallel.mesh import place_cache


@dataclass(frozen=True)
class BeamSettings:
    """Search settings. Changing num_beams, num_kept, max_new_tokens or no_repeat_ngram requires recompilation."""

    num_beams: int = 1  # number of hypotheses kept alive; 1 means greedy decoding
    penalty: str = "power"  # power: length^a (Hugging Face, fairseq); gnmt: ((5 + length) / 6)^a (Wu 2016, eq. 14)
    length_penalty: float = (
        1.0  # the exponent a: a > 0 favours longer outputs, and a < 0 favours shorter ones; 0 means no penalty
    )
    max_new_tokens: int = 128  # maximum length of a hypothesis, including the prefix and the EOS token
    min_new_tokens: int = 0  # minimum number of tokens, including the prefix, before a stop token
    no_repeat_ngram: int = 0  # length of n-grams that may not occur twice, except within a prefix; 0 means no limit
    exact: bool = True  # if True, stop once no live hypothesis can win; if False, once none can win at the next token
    num_hypotheses: int = 1  # number of hypotheses returned per source; at most num_beams

    def check(self) -> None:
        """Raises UserError for the first value that is out of range."""
        longest = self.max_new_tokens
        check_settings(
            self,
            ("num_beams", self.num_beams >= 1, "at least 1 (greedy)"),
            ("num_hypotheses", 1 <= self.num_hypotheses <= self.num_beams, f"from 1 to num_beams={self.num_beams}"),
            ("penalty", self.penalty in ("power", "gnmt"), "one of power, gnmt"),
            ("max_new_tokens", longest >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens <= longest, f"from 0 to max_new_tokens={longest}"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "a number of tokens, or 0 to disable this limit"),
            # Beyond these limits, powers of long lengths can overflow float32.
            ("length_penalty", -8 <= self.length_penalty <= 8, "between -8 and 8"),
        )

    @property
    def num_kept(self) -> int:
        """The number of finished hypotheses that a search keeps and compares with the live hypotheses."""
        return self.num_hypotheses if self.exact else self.num_beams

    def penalties(self) -> np.ndarray:
        """Returns the length penalties for outputs of lengths 1, 2, ..., T, float32 (T,)."""
        lengths_T = np.arange(1, self.max_new_tokens + 1, dtype=np.float64)
        base_T = lengths_T if self.penalty == "power" else (5 + lengths_T) / 6
        return (base_T**self.length_penalty).astype(np.float32)


@dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]  # new tokens, including the prefix and the stop token, if one was reached
    score: float  # log_probability / length penalty
    log_probability: float


@flax.struct.dataclass
class Rules:
    """Constraints on the outputs, held in arrays so that different values share a compiled program."""

    forced_BT: Array  # int32: the prefix of all hypotheses of each row, padded with -1
    used_B: Array  # bool: False for rows that only pad the batch
    penalties_T: Array  # float32, monotone
    min_new_tokens: Array  # int32 ()
    exact: Array  # bool ()


@flax.struct.dataclass
class Finished:
    """The n best finished hypotheses of each row, best first. Missing hypotheses have a score of -inf."""

    tokens_BnT: Array  # int32: the new tokens, padded on the right
    lengths_Bn: Array  # int32
    log_probabilities_Bn: Array  # float32
    scores_Bn: Array  # float32


@flax.struct.dataclass
class Beams:
    """The state of a search. The k live hypotheses of a row are sorted by probability, highest first."""

    cache: Any
    length: Array  # int32 (): number of tokens in every live hypothesis
    tokens_BkT: Array  # int32
    log_probabilities_Bk: Array  # float32; -inf for a hypothesis that is not alive
    finished: Finished


def search(
    step: Callable[[Array, Array, Any], tuple[Array, Any]],
    reorder: Callable[[Any, Array], Any],
    cache: Any,
    rules: Rules,
    vocabulary: Vocabulary,
    num_beams: int,
    num_hypotheses: int,
    no_repeat_ngram: int,
) -> Beams:
    """Runs a search, possibly under JAX tracing, and returns its final state.

    Of the R = B * k rows, rows b*k to b*k + k - 1 are the beams of batch row b.

    Args:
        step: a function (tokens_R, position (), cache) -> (logits_RV float32, cache), which reads the token of each
            hypothesis at a position (the start token at position 0) and returns the logits of the next token.
        reorder: a function (cache, rows_R) -> cache, which copies the old row `rows_R[r]`, a beam of the same batch
            row, to row r.
    """
    (B, T), k, n = rules.forced_BT.shape, num_beams, num_hypotheses
    pad_id, start_id = vocabulary.pad_id, vocabulary.output_start[0]

    def close(beams: Beams) -> Beams:
        """Drops the live hypotheses of the rows whose outputs can no longer change."""
        # Log-probabilities only decrease, so the best possible score is the current log-probability divided by the
        # largest penalty. Penalties are monotone, so the largest is at the next possible final length or at T.
        next_end = jnp.minimum(jnp.maximum(beams.length, rules.min_new_tokens), T - 1)
        last_end = jnp.where(rules.exact, T - 1, next_end)
        largest = jnp.maximum(rules.penalties_T[next_end], rules.penalties_T[last_end])
        best_B1 = beams.log_probabilities_Bk[:, :1] / largest
        open_B1 = best_B1 > beams.finished.scores_Bn[:, -1:]
        alive_Bk = jnp.where(open_B1, beams.log_probabilities_Bk, -jnp.inf)
        # All arrays except the cache are small and needed by every process, so they are replicated.
        whole = place_whole(dataclasses.replace(beams, log_probabilities_Bk=alive_Bk, cache=None))
        return dataclasses.replace(whole, cache=beams.cache)

    def is_unfinished(beams: Beams) -> Array:
        return (beams.length < T) & jnp.any(beams.log_probabilities_Bk > -jnp.inf)

    def extend(beams: Beams) -> Beams:
        t, tokens_RT = beams.length, beams.tokens_BkT.reshape(B * k, T)
        latest_R = jnp.take(tokens_RT, jnp.maximum(t - 1, 0), axis=1)
        logits_RV, cache = step(jnp.where(t > 0, latest_R, start_id), t, beams.cache)
        V = logits_RV.shape[1]
        allowed_RV = (choosable(vocabulary, V) & (~vocabulary.ends(jnp.arange(V)) | (t >= rules.min_new_tokens)))[None]
        if no_repeat_ngram:
            allowed_RV = allowed_RV & ~completes_repeat(tokens_RT, t, no_repeat_ngram, V)
        forced_R1 = jnp.repeat(jnp.take(rules.forced_BT, t, axis=1), k)[:, None]
        allowed_RV = jnp.where(forced_R1 < 0, allowed_RV, jnp.arange(V)[None] == forced_R1)
        log_probabilities_RV = jax.nn.log_softmax(logits_RV)
        if vocabulary.forced_first_id is not None:  # as in Hugging Face, the first token does not affect the score
            log_probabilities_RV = jnp.where(t > 0, log_probabilities_RV, 0.0)
        totals_RV = beams.log_probabilities_Bk.reshape(B * k, 1) + log_probabilities_RV
        totals_RV = jnp.where(allowed_RV, totals_RV, -jnp.inf)

        # The C most probable candidates, in descending order.
        C = min((1 + len(vocabulary.stops)) * k, k * V) if k > 1 else 1
        totals_BC, indices_BC = jax.lax.top_k(totals_RV.reshape(B, k * V), C)
        parents_BC, chosen_BC = indices_BC // V, indices_BC % V
        tokens_BCT = _take(beams.tokens_BkT, parents_BC).at[:, :, t].set(chosen_BC)
        ends_BC = vocabulary.ends(chosen_BC) | (t == T - 1)

        ended_Bk = jnp.where(ends_BC, totals_BC, -jnp.inf)[:, :k]
        lengths_Bk = jnp.broadcast_to(t + 1, (B, k))
        new = Finished(tokens_BCT[:, :k], lengths_Bk, ended_Bk, ended_Bk / rules.penalties_T[t])
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), beams.finished, new)
        _, best_Bn = jax.lax.top_k(both.scores_Bn, n)
        finished = jax.tree.map(lambda x: _take(x, best_Bn), both)

        alive_Bk, stays_Bk = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, totals_BC), k)
        if k > 1:
            rows_Bk = jnp.arange(B)[:, None] * k + _take(parents_BC, stays_Bk)
            cache = reorder(cache, rows_Bk.reshape(B * k))
        return close(Beams(cache, t + 1, _take(tokens_BCT, stays_Bk), alive_Bk, finished))

    lowest_Bn = jnp.full((B, n), -jnp.inf)
    nothing = Finished(jnp.full((B, n, T), pad_id, jnp.int32), jnp.zeros((B, n), jnp.int32), lowest_Bn, lowest_Bn)
    # The beams of a row are identical at first, so only one of them is alive until it is extended in several ways.
    first_Bk = rules.used_B[:, None] & (jnp.arange(k) == 0)[None]
    totals_Bk, tokens_BkT = jnp.where(first_Bk, 0.0, -jnp.inf), jnp.full((B, k, T), pad_id, jnp.int32)
    beams = Beams(cache, jnp.zeros((), jnp.int32), tokens_BkT, totals_Bk, nothing)
    return jax.lax.while_loop(is_unfinished, extend, close(beams))


def _take(x: Array, indices_Bn: Array) -> Array:
    """Gathers along axis 1 with separate indices for each row."""
    return jnp.take_along_axis(x, indices_Bn.reshape(*indices_Bn.shape, *(1,) * (x.ndim - 2)), axis=1)


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
    """Runs `search` with a model. Each source is encoded once and shared by the beams of its row."""
    B, T = rules.forced_BT.shape
    # There is no target token yet: the placeholder has segment 0, and the first token overwrites it in the cache.
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

    counts = num_beams, num_hypotheses, no_repeat_ngram
    beams = search(step, reorder, place_cache(cache.repeat_rows(num_beams)), rules, vocabulary, *counts)
    # Drops the cache to free its memory, and replicates the results, which the compiler might have sharded again.
    return place_whole(dataclasses.replace(beams, cache=None))


def beam_search(
    model: Model,
    params: Any,
    sources: Rows,
    settings: BeamSettings,
    vocabulary: Vocabulary,
    prefixes: Rows | None = None,
    min_rows: int = 1,
) -> list[list[Hypothesis]]:
    """Returns the `num_hypotheses` best hypotheses of each source, best first, or fewer if the rules allow fewer.

    Args:
        sources: the token ids of each source, including special tokens.
        prefixes: for each source, up to max_new_tokens tokens with which its outputs start, after the forced first
            token if there is one. The log-probability of a hypothesis includes its prefix.
        min_rows: the number of rows to which smaller batches are padded, so that they share one compiled program.

    If the parameters are sharded, call this function under `on_mesh`. All processes must pass the same arguments.
    Raises UserError if a setting or prefix is invalid or a source is too long for the model.
    """
    settings.check()
    rows, T = rows_for_mesh(max(len(sources), min_rows)), settings.max_new_tokens
    if T > model.max_length:
        raise UserError(
            f"max_new_tokens={T} exceeds the model's {model.max_length} positions (config.model.max_length)."
        )
    if not sources:
        return []
    assert prefixes is None or len(prefixes) == len(sources), "one prefix per source"
    rules = Rules(
        forced_BT=_forced(prefixes or [[]] * len(sources), rows, T, vocabulary),
        used_B=np.arange(rows) < len(sources),
        penalties_T=settings.penalties(),
        min_new_tokens=np.int32(settings.min_new_tokens),
        exact=np.bool_(settings.exact),
    )
    source = pad_sources(sources, rows, model.max_source_length, vocabulary.pad_id)
    counts = settings.num_beams, settings.num_kept, settings.no_repeat_ngram
    found: Finished = jax.tree.map(np.asarray, search_model(model, params, source, rules, vocabulary, *counts).finished)
    return [hypotheses(found, row)[: settings.num_hypotheses] for row in range(len(sources))]


def hypotheses(found: Finished, row: int) -> list[Hypothesis]:
    """Returns the hypotheses of one row, best first, or an empty hypothesis with score -inf if there are none."""
    existing = [
        Hypothesis(found.tokens_BnT[row, i, :length].tolist(), score, float(found.log_probabilities_Bn[row, i]))
        for i, (length, score) in enumerate(zip(found.lengths_Bn[row], found.scores_Bn[row].tolist(), strict=True))
        if score > -math.inf
    ]
    return existing or [Hypothesis([], -math.inf, -math.inf)]


def _forced(prefixes: Rows, rows: int, T: int, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the forced first token, if there is one, and the prefixes, padded with -1, as int32 (rows, T)."""
    first = vocabulary.output_start[1:]
    for number, prefix in enumerate(prefixes, start=1):
        if len(first) + len(prefix) > T:
            raise UserError(f"prefix {number} has {len(first) + len(prefix)} tokens, more than max_new_tokens={T}.")
        for token in prefix:
            if not 0 <= token < vocabulary.size or token in vocabulary.stops:
                raise UserError(f"prefix {number} contains token {token}, which cannot occur within a text.")
    return pad_rows([[*first, *prefix] for prefix in prefixes], (rows, T), -1)[0]
