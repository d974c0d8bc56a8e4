"""Beam search: the rules, the state of a search, and one step. `lm.decoding.beam_model` runs the search with a model.

A hypothesis is a sequence of at most T = max_new_tokens new tokens, which ends with a stop token such as EOS or with
the T-th token. The log-probability of a hypothesis is the sum of its tokens' log-probabilities. Token probabilities are
normalised over the model's whole vocabulary, so excluding a token does not make the others more probable. The score is
the log-probability divided by a length penalty. The length includes a forced prefix and the stop token. If the
vocabulary forces the first token, this token counts towards the length but not the log-probability, as in Hugging Face.

Each step extends the k live hypotheses of a row by every token and takes the (s + 1) * k most probable of the k * V
candidates, where s is the number of stop tokens. At least k of these do not end with a stop token. Among the first k
candidates, those that end become finished hypotheses and compete by score with the hypotheses that finished earlier.
The first k candidates that do not end stay alive. Ties go to the hypothesis that finished earlier, then to the
extension of the more probable hypothesis, then to the lower token id. With one beam, this is greedy decoding: each step
takes the most probable token.

A row ends when no live hypothesis could beat the worst finished hypothesis that is kept, even if all its further tokens
had probability 1. Running all T steps would therefore give the same outputs. Only the `num_hypotheses` finished
hypotheses to be returned are kept. If the penalty favours long outputs, most of the T steps are needed. If `exact` is
false, a row ends once it has `num_beams` finished hypotheses and no live hypothesis would displace any of them if it
ended at the next token. This rule, Hugging Face's default, stops the search earlier and rarely changes the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array
from lm.decoding.inputs import check_settings, place_whole
from lm.decoding.sampling import Vocabulary, choosable, completes_repeat, largest


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
    exact: bool = True  # if True, stop once no live hypothesis can win; if False, once none can win in one more step
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

    penalties_T: Array  # float32, monotone
    min_new_tokens: Array  # int32 ()
    exact: Array  # bool ()

    @classmethod
    def of(cls, settings: BeamSettings) -> Rules:
        return cls(settings.penalties(), np.int32(settings.min_new_tokens), np.bool_(settings.exact))


@flax.struct.dataclass
class Finished:
    """The n best finished hypotheses of each row, best first. Missing hypotheses have a score of -inf."""

    tokens_BnT: Array  # int32: the new tokens, padded on the right
    lengths_Bn: Array  # int32
    log_probabilities_Bn: Array  # float32
    scores_Bn: Array  # float32


@flax.struct.dataclass
class Beams:
    """The state of a search. The k live hypotheses of a row are sorted by probability, highest first.

    Each row is a separate search, which may have started earlier or later than the searches of the other rows.
    """

    cache: Any
    forced_BT: Array  # int32: the prefix of all hypotheses of each row, padded with -1
    lengths_B: Array  # int32: number of tokens in every live hypothesis
    tokens_BkT: Array  # int32
    log_probabilities_Bk: Array  # float32; -inf for a hypothesis that is not alive
    finished: Finished

    @property
    def alive_B(self) -> Array:
        """Whether the search of each row continues, bool (B,)."""
        return jnp.any(self.log_probabilities_Bk > -jnp.inf, axis=1)


def first_beams(cache: Any, forced_BT: Array, used_B: Array, num_beams: int, num_kept: int, pad_id: int) -> Beams:
    """Returns the state before the first token. Rows that are not used have no live hypothesis."""
    (B, T), k, n = forced_BT.shape, num_beams, num_kept
    lowest_Bn = jnp.full((B, n), -jnp.inf)
    nothing = Finished(jnp.full((B, n, T), pad_id, jnp.int32), jnp.zeros((B, n), jnp.int32), lowest_Bn, lowest_Bn)
    # The beams of a row are identical at first, so only one of them is alive until the first step extends it.
    first_Bk = used_B[:, None] & (jnp.arange(k) == 0)[None]
    tokens_BkT = jnp.full((B, k, T), pad_id, jnp.int32)
    return Beams(cache, forced_BT, jnp.zeros(B, jnp.int32), tokens_BkT, jnp.where(first_Bk, 0.0, -jnp.inf), nothing)


def search(
    step: Callable[[Array, Array, Any], tuple[Array, Any]],
    reorder: Callable[[Any, Array], Any],
    beams: Beams,
    rules: Rules,
    vocabulary: Vocabulary,
    no_repeat_ngram: int,
    min_alive: Array | int,
    capacity: Array | int,
) -> Beams:
    """Continues the searches of all rows until at most `min_alive` of them are alive. JAX can trace this function.

    Of the R = B * k rows of the cache, rows b*k to b*k + k - 1 are the beams of batch row b. The finished hypotheses
    and the length of a row that is no longer alive do not change.

    Args:
        step: a function (tokens_R, positions_R, cache) -> (logits_RV float32, cache), which reads the token of each
            hypothesis at its position (the start token at position 0) and returns the logits of the next token.
        reorder: a function (cache, rows_R) -> cache, which copies the old row `rows_R[r]`, a beam of the same batch
            row, to row r.
        capacity: the length at which a live hypothesis fills the cache; the call also ends once one has this length.
    """
    B, k, T = beams.tokens_BkT.shape
    n = beams.finished.scores_Bn.shape[1]
    start_id, rows_B = vocabulary.output_start[0], jnp.arange(B)

    def close(beams: Beams) -> Beams:
        """Drops the live hypotheses of the rows whose outputs can no longer change."""
        # Log-probabilities only decrease, so the best possible score is the current log-probability divided by the
        # largest penalty. Penalties are monotone, so the largest is at the next possible final length or at T.
        next_end_B = jnp.minimum(jnp.maximum(beams.lengths_B, rules.min_new_tokens), T - 1)
        last_end_B = jnp.where(rules.exact, T - 1, next_end_B)
        largest_B = jnp.maximum(rules.penalties_T[next_end_B], rules.penalties_T[last_end_B])
        best_B1 = beams.log_probabilities_Bk[:, :1] / largest_B[:, None]
        open_B1 = best_B1 > beams.finished.scores_Bn[:, -1:]
        alive_Bk = jnp.where(open_B1, beams.log_probabilities_Bk, -jnp.inf)
        # All arrays except the cache are small and needed by every process, so they are replicated.
        whole = place_whole(dataclasses.replace(beams, log_probabilities_Bk=alive_Bk, cache=None))
        return dataclasses.replace(whole, cache=beams.cache)

    def continues(beams: Beams) -> Array:
        alive_B = beams.alive_B
        fits = jnp.max(jnp.where(alive_B, beams.lengths_B, 0)) < capacity
        return (jnp.sum(alive_B) > min_alive) & fits

    def extend(beams: Beams) -> Beams:
        alive_B = beams.alive_B
        t_B = jnp.minimum(beams.lengths_B, T - 1)
        t_R, tokens_RT = jnp.repeat(t_B, k), beams.tokens_BkT.reshape(B * k, T)
        latest_R = jnp.take_along_axis(tokens_RT, jnp.maximum(t_R - 1, 0)[:, None], axis=1)[:, 0]
        logits_RV, cache = step(jnp.where(t_R > 0, latest_R, start_id), t_R, beams.cache)
        V = logits_RV.shape[1]
        may_end_R1 = (t_R >= rules.min_new_tokens)[:, None]
        allowed_RV = choosable(vocabulary, V)[None] & (~vocabulary.ends(jnp.arange(V))[None] | may_end_R1)
        if no_repeat_ngram:
            allowed_RV = allowed_RV & ~completes_repeat(tokens_RT, t_R, no_repeat_ngram, V)
        forced_R1 = jnp.repeat(beams.forced_BT[rows_B, t_B], k)[:, None]
        allowed_RV = jnp.where(forced_R1 < 0, allowed_RV, jnp.arange(V)[None] == forced_R1)
        highest_R1 = jnp.max(logits_RV, axis=1, keepdims=True)
        log_sum_R1 = jnp.log(jnp.sum(jnp.exp(logits_RV - highest_R1), axis=1, keepdims=True))

        def totals(logits_BMW: Array, rows_BM: Array) -> Array:
            """Returns the log-probabilities of hypotheses extended by tokens, given the logits of these tokens."""
            each = highest_R1.reshape(B, k), log_sum_R1.reshape(B, k), beams.log_probabilities_Bk
            highest_BM1, log_sum_BM1, before_BM1 = (_take(x_Bk, rows_BM)[:, :, None] for x_Bk in each)
            log_probabilities_BMW = logits_BMW - highest_BM1 - log_sum_BM1  # as in jax.nn.log_softmax
            # As in Hugging Face, a forced first token does not affect the log-probability of the hypothesis.
            if vocabulary.forced_first_id is not None:
                log_probabilities_BMW = jnp.where((t_B > 0)[:, None, None], log_probabilities_BMW, 0.0)
            return jnp.where(logits_BMW > -jnp.inf, before_BM1 + log_probabilities_BMW, -jnp.inf)

        # The C most probable candidates, in descending order.
        C = min((1 + len(vocabulary.stops)) * k, k * V) if k > 1 else 1
        allowed_logits_RV = jnp.where(allowed_RV, logits_RV, -jnp.inf)
        totals_BC, indices_BC = largest(allowed_logits_RV.reshape(B, k, V), C, totals)
        parents_BC, chosen_BC = indices_BC // V, indices_BC % V
        tokens_BCT = _take(beams.tokens_BkT, parents_BC)
        tokens_BCT = jnp.where(jnp.arange(T)[None, None] == t_B[:, None, None], chosen_BC[:, :, None], tokens_BCT)
        ends_BC = vocabulary.ends(chosen_BC) | (t_B == T - 1)[:, None]

        ended_Bk = jnp.where(ends_BC, totals_BC, -jnp.inf)[:, :k]
        lengths_Bk = jnp.broadcast_to(t_B[:, None] + 1, (B, k))
        new = Finished(tokens_BCT[:, :k], lengths_Bk, ended_Bk, ended_Bk / rules.penalties_T[t_B][:, None])
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), beams.finished, new)
        _, best_Bn = jax.lax.top_k(both.scores_Bn, n)
        finished = jax.tree.map(lambda x: _take(x, best_Bn), both)

        alive_Bk, stays_Bk = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, totals_BC), k)
        if k > 1:
            rows_Bk = rows_B[:, None] * k + _take(parents_BC, stays_Bk)
            cache = reorder(cache, rows_Bk.reshape(B * k))
        lengths_B, tokens_BkT = beams.lengths_B + alive_B, _take(tokens_BCT, stays_Bk)
        return close(Beams(cache, beams.forced_BT, lengths_B, tokens_BkT, alive_Bk, finished))

    return jax.lax.while_loop(continues, extend, close(beams))


def _take(x: Array, indices_Bn: Array) -> Array:
    """Gathers along axis 1 with separate indices for each row."""
    return jnp.take_along_axis(x, indices_Bn.reshape(*indices_Bn.shape, *(1,) * (x.ndim - 2)), axis=1)
