"""Log-probabilities of given continuations, such as the answers of a multiple-choice question.

A decoder scores a continuation after its context. An encoder-decoder reads the context as its source and scores the
continuation as its target. Rows are padded on the right to a small number of lengths, so that few programs are
compiled, and the padding affects no score.
"""

from __future__ import annotations

import functools
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
    context is the token `start`. Each further context consists of the preceding tokens that the model can read in
    addition to the continuation. These are the windows of lm-evaluation-harness.
    """
    for begin in range(0, len(tokens), max_length):
        end = min(begin + max_length, len(tokens))
        yield list(tokens[end - max_length - 1 : begin]) if begin else [start], list(tokens[begin:end])


def cut_left(tokens: Tokens, length: int, num_kept: int = 0) -> list[int]:
    """Returns the last `length` tokens. The first `num_kept` tokens, such as BOS, are kept in place of later ones."""
    if len(tokens) <= length:
        return list(tokens)
    num_kept = min(num_kept, length)
    return [*tokens[:num_kept], *tokens[len(tokens) - (length - num_kept) :]]


@dataclass(frozen=True)
class _Row:
    tokens: list[int]  # the input of the decoder
    targets: list[int]  # the continuation, whose last token is predicted from the last input token
    source: list[int]  # the input of the encoder; empty for a decoder


@dataclass(frozen=True)
class ContinuationScorer:
    """Scores continuations with a model.

    Call the methods under `on_mesh` if the parameters are sharded, and with the same arguments in all processes.
    """

    model: Model
    params: Any
    special_tokens: SpecialTokens  # of the tokenizer; the start of each target comes from here
    pad_id: int
    max_length: int  # the number of tokens that the model reads per context, source or target
    batch_size: int  # the number of rows per batch; affects memory and speed, but not the scores

    def score(
        self, pairs: Sequence[tuple[Tokens, Tokens]], report: Callable[[int, int], None] | None = None
    ) -> list[Score]:
        """Returns the score of each (context, continuation) pair, in order.

        Contexts are token ids with all special tokens. A context that is too long is cut on the left, but its leading
        special tokens are kept. A continuation without tokens has the log-probability 0. Raises UserError if a
        continuation alone is too long for the model.

        Args:
            report: called with (rows done, total rows) after each batch.
        """
        scores = [Score(0.0, True)] * len(pairs)
        rows = {number: self._row(*pair) for number, pair in enumerate(pairs) if len(pair[1])}
        # The longest rows come first, so that out-of-memory errors occur early.
        order = sorted(rows, key=lambda number: [-source_bucket(len(each)) for each in self._sides(rows[number])])
        size = min(self.batch_size, max(len(order), 1))
        for first in range(0, len(order), size):
            numbers = order[first : first + size]
            log_p_BL, is_top_BL = self._run([rows[number] for number in numbers], size)
            for index, number in enumerate(numbers):
                row = rows[number]
                scored = slice(len(row.tokens) - len(row.targets), len(row.tokens))
                total = float(log_p_BL[index, scored].sum(dtype=np.float64))
                scores[number] = Score(total, bool(is_top_BL[index, scored].all()))
            if report is not None:
                report(first + len(numbers), len(order))
        return scores

    @staticmethod
    def _sides(row: _Row) -> tuple[list[int], list[int]]:
        return row.source, row.tokens

    def _row(self, context: Tokens, continuation: Tokens) -> _Row:
        special, targets = self.special_tokens, list(continuation)
        if self.model.reads_source:
            template = special.for_target
            start = [special.decoder_start, *template.ids[: template.num_before(0)]]
        else:
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
            return _Row([*start, *targets[:-1]], targets, cut_left(context, self.max_length, num_kept))
        num_kept = int(special.bos is not None and start == [special.bos])
        tokens = [*cut_left(context, self.max_length + 1 - len(targets), num_kept), *targets]
        return _Row(tokens[:-1], targets, [])

    def _run(self, rows: Sequence[_Row], min_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the log-probability of each next token, and whether it is the most probable one, both (B, L)."""
        B = rows_for_mesh(max(len(rows), min_rows))
        L = min(source_bucket(max(len(row.tokens) for row in rows)), self.model.max_length)
        tokens_BL, segments_BL = pad_rows([row.tokens for row in rows], (B, L), self.pad_id)
        # The token that follows each input token. Those before the continuation are computed, but not read.
        shifted = [[*row.tokens[1:], row.targets[-1]] for row in rows]
        targets_BL, _ = pad_rows(shifted, (B, L), self.pad_id)
        positions_BL = np.broadcast_to(np.arange(L, dtype=np.int32), (B, L))
        source = None
        if self.model.reads_source:
            source = pad_sources([row.source for row in rows], B, self.model.max_source_length, self.pad_id)
        batch = Batch(tokens_BL, targets_BL, np.ones((B, L), np.float32), positions_BL, segments_BL, source)
        log_p_BL, is_top_BL = token_scores(self.model, self.params, batch)
        return np.asarray(log_p_BL), np.asarray(is_top_BL)


@functools.partial(jax.jit, static_argnames="model")
def token_scores(model: Model, params: Any, batch: Batch) -> tuple[Array, Array]:
    """Returns the log-probability of each target and whether it is the most probable token, both (B, L)."""
    batch = jax.tree.map(lambda x: nn.with_logical_constraint(x, ("batch", "length")), batch)
    logits_BLV = model.apply({"params": params}, batch, train=False).logits
    target_logit_BL = jnp.take_along_axis(logits_BLV, batch.targets[..., None], axis=-1)[..., 0]
    log_p_BL = target_logit_BL - jax.nn.logsumexp(logits_BLV, axis=-1)
    return place_whole((log_p_BL, jnp.argmax(logits_BLV, axis=-1) == batch.targets))
