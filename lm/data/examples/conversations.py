"""Examples made from conversations, in which only the answers are learnt (supervised fine-tuning).

A decoder reads whole conversations, as the chat template writes them. For an encoder-decoder, each answer is an
example: the source is all that precedes the answer, and the target is the answer.

E is the number of examples, T the number of tokens per example, and N the total number of tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example, Examples, cut_notes, from_pair
from lm.data.examples.labelled import Ragged, Tokens
from lm.data.reading.conversations import Conversation
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.chat_template import ChatTemplate, Message, Tools
from lm.errors import UserError


@dataclass(frozen=True)
class ChatTokens(Tokens):
    """The tokens of conversations or, for an encoder-decoder, of answers and of what precedes them."""

    texts: Ragged  # E rows
    scored_N: np.ndarray  # bool: whether each token of `texts` belongs to an answer
    sources: Ragged | None  # E rows
    num_cut: int  # number of sources from which the oldest turns were left out

    @classmethod
    def of_conversations(cls, examples: Sequence[Conversation], tokenizer: Tokenizer, text: str) -> ChatTokens:
        """Encodes conversations with the chat template `text`. Raises UserError if the template refuses one."""
        template, ids, scored = ChatTemplate(tokenizer, text), [], [np.zeros(0, bool)]
        for each in examples:
            with _located(each):
                found = template.encode(each.messages, each.tools)
            ids.append(found.ids)
            scored.append(found.scored)
        return cls(Ragged.of(ids), np.concatenate(scored), None, 0)

    @classmethod
    def of_answers(
        cls, examples: Sequence[Conversation], tokenizer: Tokenizer, text: str, source_length: int
    ) -> ChatTokens:
        """Encodes each answer as a target. Sources longer than `source_length` lose their oldest turns, then their end.

        Raises UserError if the template refuses a conversation.
        """
        template, targets, sources, num_cut = ChatTemplate(tokenizer, text), [], [], 0
        for each in examples:
            for number, message in enumerate(each.messages):
                if number and message["role"] == "assistant":
                    with _located(each):
                        source, is_cut = source_ids(template, each.messages[:number], each.tools, source_length)
                        found = template.encode(each.messages[: number + 1], each.tools)
                    begin, end = found.answers[-1]
                    end -= found.ids[end - 1] == tokenizer.eos_id  # the template for targets adds EOS
                    num_cut += is_cut
                    sources.append(source)
                    targets.append(tokenizer.target_template.fill(found.ids[begin:end])[0])
        rows = Ragged.of(targets)
        return cls(rows, np.ones(len(rows.flat_N), bool), Ragged.of(sources), num_cut)


def source_ids(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools, source_length: int
) -> tuple[np.ndarray, bool]:
    """Returns the source from which an encoder-decoder writes the next answer, and whether it had to be cut."""
    form = template.tokenizer.source_template
    limit = source_length - form.num_special
    ids, left_out = template.fitted_prompt(messages, tools, limit)
    if ids[:1] == list(form.ids[:1]):  # the chat template has written the token that precedes a source
        ids = ids[1:]
    return form.fill(ids[:limit])[0], left_out > 0 or len(ids) > limit


@contextlib.contextmanager
def _located(example: Conversation) -> Iterator[None]:
    """Prefixes the message of a UserError with the position of the conversation, unless it names a setting."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"{example.where}: {error}") from error


class ChatExamples(Examples):
    """Conversations, of which only the answers have positive weights, or pairs of a source and an answer.

    A conversation that is longer than a row is cut at its end. In training, conversations without a target after the
    cut are omitted, and `drop` omits all that are too long.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, *, train: bool):
        self._tokens: ChatTokens = store.tokens
        self._start_id, self._counts = (
            tokenizer.decoder_start_id,
            {name: store.counts[name] for name in ("documents", "unknown")},
        )
        two_sided = self._tokens.sources is not None
        # A decoder predicts each token from those before it, so its inputs are one shorter than the conversation.
        lengths = self._tokens.texts.lengths - (not two_sided)
        length, drop = config.data.sequence_length, train and config.data.pairs.overlong == "drop"
        long_E = lengths > length
        self._lengths = np.minimum(lengths, length)
        kept_E = (lengths > 0) & ~(long_E & drop)
        if train:
            kept_E &= self._count_scored() > 0
        self._kept_E = np.flatnonzero(kept_E)
        noun = "answers" if two_sided else "conversations"
        fate = "are too long and dropped" if drop else "are cut"
        self.notes = cut_notes(int(long_E.sum()), len(lengths), f"{noun} {fate}", "sequence_length", length)
        cut = self._tokens.num_cut
        self.notes += cut_notes(cut, len(lengths), "sources are cut", "source_length", config.data.source_length)
        if lost := int(np.sum(~long_E & ~kept_E) + np.sum(long_E & ~kept_E) * (not drop)):
            self.notes.append(f"{lost:,} of {len(lengths):,} {noun} have no answer within a row and are omitted")

    def _count_scored(self) -> np.ndarray:
        """Returns the number of targets of each example, int64 (E,)."""
        starts, shift = self._tokens.texts.starts[:-1], self._tokens.sources is None
        totals = np.concatenate([[0], np.cumsum(self._tokens.scored_N)])
        ends = starts + self._lengths + shift
        return totals[ends] - totals[np.minimum(starts + shift, ends)]

    @property
    def text(self) -> dict[str, int]:
        return {"documents": self._counts["documents"], "bytes": 0, "words": 0, "unknown": self._counts["unknown"]}

    def __len__(self) -> int:
        return len(self._kept_E)

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, ...]:
        sources = self._tokens.sources
        of_sources = () if sources is None else (sources.lengths[self._kept_E],)
        return self._lengths[self._kept_E], *of_sources

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return self._sizes

    def num_targets(self) -> int:
        return int(self._count_scored()[self._kept_E].sum())

    def make(self, epoch: int, index: int) -> Example:
        number = int(self._kept_E[index])
        length, tokens = int(self._lengths[number]), self._tokens.texts[number]
        if self._tokens.sources is not None:
            return from_pair(self._tokens.sources[number], tokens[:length], self._start_id)
        start = self._tokens.texts.starts[number]
        weights_T = self._tokens.scored_N[start + 1 : start + 1 + length].astype(np.float32)
        return Example(tokens[:length], tokens[1 : length + 1], weights_T)
