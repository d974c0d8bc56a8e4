"""Examples made from conversations, in which only the answers are targets (supervised fine-tuning).

A decoder reads whole conversations, as rendered by the chat template. For an encoder-decoder, each answer is an
example: the source is everything before the answer, and the target is the answer.

E is the number of examples, T the number of tokens per example, and N the total number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from lm.errors import named_errors


@dataclass(frozen=True)
class ChatTokens(Tokens):
    """The tokens of whole conversations or, for an encoder-decoder, of each answer and of everything before it."""

    texts: Ragged  # E rows
    scored_N: np.ndarray  # bool: whether each token of `texts` belongs to an answer
    sources: Ragged | None  # E rows
    num_cut: int  # number of sources that were shortened

    @classmethod
    def of_conversations(cls, examples: Sequence[Conversation], tokenizer: Tokenizer, text: str) -> ChatTokens:
        """Encodes conversations with the chat template `text`.

        Raises UserError if the template rejects a conversation.
        """
        template, ids, scored = ChatTemplate(tokenizer, text), [], [np.zeros(0, bool)]
        for each in examples:
            with named_errors(each.where):
                found = template.encode(each.messages, each.tools)
            ids.append(found.ids)
            scored.append(found.scored)
        return cls(Ragged.of(ids), np.concatenate(scored), None, 0)

    @classmethod
    def of_answers(
        cls, examples: Sequence[Conversation], tokenizer: Tokenizer, text: str, source_length: int
    ) -> ChatTokens:
        """Encodes each answer as a target, without special tokens around the source or the target.

        If a source is longer than `source_length`, its oldest turns are left out and, if it is still too long, it is
        truncated at the end. Raises UserError if the template rejects a conversation.
        """
        template, targets, sources, num_cut = ChatTemplate(tokenizer, text), [], [], 0
        for each in examples:
            for number, message in enumerate(each.messages):
                if number and message["role"] == "assistant":
                    with named_errors(each.where):
                        source, left_out, longest = source_prompt(
                            template, each.messages[:number], each.tools, source_length
                        )
                        found = template.encode(each.messages[: number + 1], each.tools)
                    begin, end = found.answers[-1]
                    end -= found.ids[end - 1] == tokenizer.eos_id  # EOS is added to each target
                    num_cut += left_out > 0 or len(source) > longest
                    sources.append(source[:longest])
                    targets.append(found.ids[begin:end])
        rows = Ragged.of(targets)
        return cls(rows, np.ones(len(rows.flat_N), bool), Ragged.of(sources), num_cut)


def source_prompt(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools, source_length: int
) -> tuple[list[int], int, int]:
    """Returns the source for the next answer of an encoder-decoder, without the surrounding special tokens.

    Also returns the number of messages that were left out (see `fitted_prompt`), and the largest number of tokens that
    fits within `source_length`; the source may be longer.
    """
    form = template.tokenizer.source_template
    longest = source_length - form.num_special
    ids, left_out = template.fitted_prompt(messages, tools, longest)
    if ids[:1] == list(form.ids[:1]):  # the chat template has already written the token that precedes a source
        ids = ids[1:]
    return ids, left_out, longest


class ChatExamples(Examples):
    """Conversations in which only the answers have positive weights, or pairs of a source and an answer.

    A conversation that is longer than a row is truncated at the end. In training, conversations that have no target
    after truncation are omitted. If data.pairs.overlong is "drop", all conversations that are too long are omitted.
    """

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer, *, train: bool):
        self._tokens: ChatTokens = store.tokens
        self._special = tokenizer.special_tokens
        self._counts = {name: store.counts[name] for name in ("documents", "unknown")}
        self._two_sided = self._tokens.sources is not None
        # A decoder predicts each token from those before it, so its input is one token shorter than the conversation.
        added = self._special.for_target.num_special if self._two_sided else -1
        lengths, longest = self._tokens.texts.lengths, config.data.sequence_length - added
        drop = train and config.data.pairs.overlong == "drop"
        is_long_E = lengths > longest
        self._lengths = np.minimum(lengths, longest)
        self._sizes_of_all = self._lengths + added
        kept_E = (self._sizes_of_all > 0) & ~(is_long_E & drop)
        if train:
            kept_E &= self._count_scored() > 0
        self._kept_E = np.flatnonzero(kept_E)
        total, noun = len(lengths), "answers" if self._two_sided else "conversations"
        fate = "are too long and are dropped" if drop else "are truncated"
        cut_sources = self._tokens.num_cut, total, "sources are shortened", "source_length", config.data.source_length
        self.notes = [
            *cut_notes(int(is_long_E.sum()), total, f"{noun} {fate}", "sequence_length", config.data.sequence_length),
            *cut_notes(*cut_sources),
        ]
        if lost := total - len(self._kept_E) - int(is_long_E.sum()) * drop:
            self.notes.append(f"{lost:,} of {total:,} {noun} have no answer within a row and are omitted")

    def _count_scored(self) -> np.ndarray:
        """Returns the number of targets per example, int64 (E,)."""
        if self._two_sided:
            return self._sizes_of_all
        begins_E = self._tokens.texts.starts[:-1]
        totals = np.concatenate([[0], np.cumsum(self._tokens.scored_N)])
        return totals[begins_E + self._lengths] - totals[begins_E + np.minimum(1, self._lengths)]

    @property
    def text(self) -> dict[str, int]:
        return {"documents": self._counts["documents"], "bytes": 0, "words": 0, "unknown": self._counts["unknown"]}

    def __len__(self) -> int:
        return len(self._kept_E)

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, ...]:
        sources, added = self._tokens.sources, self._special.for_source.num_special
        of_sources = () if sources is None else (sources.lengths[self._kept_E] + added,)
        return self._sizes_of_all[self._kept_E], *of_sources

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return self._sizes

    def num_targets(self) -> int:
        return int(self._count_scored()[self._kept_E].sum())

    def make(self, epoch: int, index: int) -> Example:
        number = int(self._kept_E[index])
        tokens_T = self._tokens.texts[number][: self._lengths[number]]
        if self._tokens.sources is not None:
            return from_pair(self._tokens.sources[number], tokens_T, self._special)
        begin = self._tokens.texts.starts[number]
        weights_T = self._tokens.scored_N[begin + 1 : begin + len(tokens_T)].astype(np.float32)
        return Example(tokens_T[:-1], tokens_T[1:], weights_T)
