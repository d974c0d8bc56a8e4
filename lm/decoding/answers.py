"""Generates the assistant's answers to whole conversations, several at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.examples.conversations import source_prompt
from lm.data.tokenizing.chat_template import ChatTemplate, Message, Tools
from lm.decoding.beam import BeamSettings
from lm.decoding.loop import Sampler
from lm.decoding.rows import Report
from lm.decoding.sampling import Sampling, Vocabulary, row_keys, vocabulary_of
from lm.decoding.text import SourceDecoder
from lm.models.protocol import Model

Conversations = Sequence[tuple[Sequence[Message], Tools]]  # the messages before the answer, and the tools


def chat_vocabulary(template: ChatTemplate) -> Vocabulary:
    """Returns the tokenizer's vocabulary, extended so that the tokens that end an answer also end a row."""
    vocabulary = vocabulary_of(template.tokenizer)
    return dataclasses.replace(vocabulary, other_stops=tuple(sorted(template.end_ids - {vocabulary.eos_id})))


@dataclass(frozen=True)
class AnswerWriter:
    """Generates answers: greedily with a decoder, or by beam search with an encoder-decoder.

    If a conversation is too long, its oldest turns are left out, as in lm.chat.
    """

    model: Model
    params: Any
    template: ChatTemplate
    source_length: int  # the maximum length of a source; 0 for a decoder
    batch_size: int  # number of conversations that are answered at the same time
    report: Report | None = None

    def write(self, conversations: Conversations, settings: BeamSettings) -> list[list[tuple[str, float]]]:
        """Returns (answer, score) pairs for each conversation, best first. The score of a decoder's answer is NaN.

        A conversation that leaves no positions for an answer gets an empty answer. Raises UserError if the template
        rejects a conversation, or if a setting is out of range.
        """
        settings.check()
        if self.source_length:
            return self._searched(conversations, settings)
        return [[(text, math.nan)] for text in self._continued(conversations, settings.max_new_tokens)]

    def _searched(self, conversations: Conversations, settings: BeamSettings) -> list[list[tuple[str, float]]]:
        tokenizer, sources = self.template.tokenizer, []
        for messages, tools in conversations:
            ids, _, longest = source_prompt(self.template, messages, tools, self.source_length)
            sources.append(tokenizer.source_template.fill(ids[:longest])[0].tolist())
        ends = chat_vocabulary(self.template)
        decoder = SourceDecoder(self.model, self.params, tokenizer, self.batch_size, self.report, vocabulary=ends)
        return decoder.search(sources, settings)

    def _continued(self, conversations: Conversations, max_new_tokens: int) -> list[str]:
        longest = self.model.max_length
        limit = longest - min(max_new_tokens, longest // 2)  # at least half of the positions are left for the prompt
        prompts = [self.template.fitted_prompt(messages, tools, limit)[0] for messages, tools in conversations]
        fitting = [number for number, ids in enumerate(prompts) if len(ids) < longest]
        vocabulary = chat_vocabulary(self.template)
        sampler = Sampler(self.model, self.params, Sampling(temperature=0), vocabulary, max_new_tokens)
        texts, size = [""] * len(prompts), min(self.batch_size, len(fitting))
        if not fitting:
            return texts
        fitting.sort(key=lambda number: -len(prompts[number]))  # so that out-of-memory errors occur early
        keys_B = row_keys(0, np.array(fitting), np.zeros(len(fitting)))
        written = sampler.generate_each([prompts[number] for number in fitting], keys_B, size)
        for count, (index, tokens) in enumerate(written, start=1):
            texts[fitting[index]] = self.template.tokenizer.decode(t for t in tokens if t not in vocabulary.stops)
            if self.report is not None:
                self.report(count, len(fitting))
        return texts
