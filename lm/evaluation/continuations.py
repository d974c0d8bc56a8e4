"""Log-probabilities of given continuations, such as the answers of a multiple-choice question.

A decoder scores a continuation after its context. An encoder-decoder reads the context as its source and scores the
continuation as its target. Rows are padded on the right to one of a small number of lengths, so that only a few
programs are compiled; the padding does not affect the scores. Continuations that differ only in their last token, such
as the letters of the answers to a question, share a row.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array, Batch
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.decoding.inputs import pad_rows, pad_sources, place_whole, rows_for_mesh, source_bucket
from lm.errors import UserError
from lm.models.protocol import Model

Tokens = Sequence[int]


class Score(NamedTuple):
    """The score of a continuation."""

    log_probability: float  # in nats, summed over the tokens of the continuation
    is_greedy: bool  # whether each token is the most probable one, given the tokens before it


def rolling_windows(tokens: Tokens, start: int, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yields (context, continuation) pairs that together score each token of a text exactly once.

    The continuations are consecutive parts of the text, each with `max_length` tokens except the last one. The first
    context is the token `start`. Each later context consists of as many preceding tokens as the model can read in
    addition to the continuation. lm-evaluation-harness uses the same windows.
    """
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        yield list(tokens[end - max_length - 1 : begin]) if begin else [start], list(tokens[begin:end])


def cut_left(tokens: Tokens, length: int, num_kept: int = 0) -> list[int]:
    """Truncates tokens on the left to `length` tokens, but keeps the first `num_kept` tokens, such as BOS."""
    if len(tokens) <= length:
        return list(tokens)
    num_kept = min(num_kept, length)
    return [*tokens[:num_kept], *tokens[len(tokens) - (length - num_kept) :]]


class _Row(NamedTuple):
    source: tuple[int, ...]  # the input of the encoder; empty for a decoder
    tokens: tuple[int, ...]  # the input of the decoder, which ends before the last token of the continuation


@dataclass(frozen=True)
class ContinuationScorer:
    """Scores continuations with a model.

    If the parameters are sharded, call the methods under `on_mesh`. All processes must pass the same arguments.
    """

    model: Model
    params: Any
    special_tokens: SpecialTokens  # the tokenizer's special tokens, which determine how each target starts
    pad_id: int
    max_length: int  # the number of tokens that the model reads per context, source or target
    batch_size: int  # the number of rows per batch; affects memory and speed, but not the scores

    def score(
        self, pairs: Sequence[tuple[Tokens, Tokens]], report: Callable[[int, int], None] | None = None
    ) -> list[Score]:
        """Returns the score of each (context, continuation) pair, in order.

        Contexts are token ids with all special tokens. A context that is too long is truncated on the left, but its
        leading special tokens are kept. A continuation without tokens has a log-probability of 0. Raises UserError if a
        continuation alone is too long for the model.

        Args:
            report: a function called with (rows done, total rows) after each batch.
        """
        scores = [Score(0.0, True)] * len(pairs)
        numbers_of: dict[_Row, list[int]] = defaultdict(list)
        for number, (context, continuation) in enumerate(pairs):
            if continuation:
                numbers_of[self._row(context, continuation)].append(number)
        # The longest rows come first, so that out-of-memory errors occur early.
        order = sorted(numbers_of, key=lambda row: [-source_bucket(len(side)) for side in row])
        size = min(self.batch_size, max(len(order), 1))
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            last = [[pairs[number][1][-1] for number in numbers_of[row]] for row in rows]
            found = self._run(rows, last, size)
            for index, row in enumerate(rows):
                log_p_L, is_top_L, log_p_K, is_top_K = (each[index] for each in found)
                for k, number in enumerate(numbers_of[row]):
                    end = len(row.tokens) - 1
                    before = slice(end - (len(pairs[number][1]) - 1), end)
                    total = log_p_L[before].sum(dtype=np.float64) + log_p_K[k]
                    scores[number] = Score(float(total), bool(is_top_L[before].all() and is_top_K[k]))
            if report is not None:
                report(first + len(rows), len(order))
        return scores

    def _row(self, context: Tokens, continuation: Tokens) -> _Row:
        special, targets = self.special_tokens, tuple(continuation)
        if self.model.reads_source:
            template = special.for_target
            start = [special.decoder_start, *template.ids[: template.num_before(0)]]
        else:
            assert context, "a decoder needs a token before the continuation"
            start = list(context[:1])  # at least one token must remain
        if (longest := self.max_length + 1 - len(start)) < len(targets):
            raise UserError(
                f"a continuation has {len(targets):,} tokens, but the model scores at most {longest:,} at a time; "
                "choose a larger --max_length, if the model allows it, or another task."
            )
        if self.model.reads_source:
            template = special.for_source
            leading = list(template.ids[: template.num_before(0)])
            num_kept = len(leading) if list(context[: len(leading)]) == leading else 0
            return _Row(tuple(cut_left(context, self.max_length, num_kept)), (*start, *targets[:-1]))
        num_kept = int(special.bos is not None and start == [special.bos])
        return _Row((), (*cut_left(context, self.max_length + 1 - len(targets), num_kept), *targets[:-1]))

    def _run(self, rows: Sequence[_Row], last: Sequence[Tokens], min_rows: int) -> list[np.ndarray]:
        """Returns the results of `token_scores` for the given rows.

        `last` holds, for each row, the tokens that may follow the last token of the row. The target of every other
        token is the next token in its row.
        """
        B, K = rows_for_mesh(max(len(rows), min_rows)), 1 << (max(map(len, last)) - 1).bit_length()
        L = min(source_bucket(max(len(row.tokens) for row in rows)), self.model.max_length)
        tokens_BL, segments_BL = pad_rows([row.tokens for row in rows], (B, L), self.pad_id)
        targets_BL, _ = pad_rows([row.tokens[1:] for row in rows], (B, L), self.pad_id)
        positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
        source = None
        if self.model.reads_source:
            source = pad_sources([row.source for row in rows], B, self.model.max_source_length, self.pad_id)
        batch = Batch(tokens_BL, targets_BL, np.ones((B, L), np.float32), positions_BL, segments_BL, source)
        last_BK, _ = pad_rows(last, (B, K), self.pad_id)
        return [*map(np.asarray, token_scores(self.model, self.params, batch, last_BK))]


@functools.partial(jax.jit, static_argnames="model")
def token_scores(model: Model, params: Any, batch: Batch, last_BK: Array) -> tuple[Array, Array, Array, Array]:
    """Returns the log-probability of each target, and whether it is the most probable token, both (B, L).

    Also returns these two values for K tokens that may follow the last token of each row, both (B, K).
    """
    batch = jax.tree.map(lambda x: nn.with_logical_constraint(x, ("batch", "length")), batch)
    logits_BLV = model.apply({"params": params}, batch, train=False).logits
    normalizer_BL, top_BL = jax.nn.logsumexp(logits_BLV, axis=-1), jnp.argmax(logits_BLV, axis=-1)
    target_logit_BL = jnp.take_along_axis(logits_BLV, batch.targets[..., None], axis=-1)[..., 0]
    ends_B1 = jnp.maximum(jnp.sum(batch.segments, axis=1, keepdims=True) - 1, 0)
    logits_BV = jnp.take_along_axis(logits_BLV, ends_B1[..., None], axis=1)[:, 0]
    normalizer_B1, top_B1 = (jnp.take_along_axis(x, ends_B1, axis=1) for x in (normalizer_BL, top_BL))
    log_p_BK = jnp.take_along_axis(logits_BV, last_BK, axis=1) - normalizer_B1
    return place_whole((target_logit_BL - normalizer_BL, top_BL == batch.targets, log_p_BK, top_B1 == last_BK))
