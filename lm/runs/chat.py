"""A conversation with a run's model: the history, and answers that are generated token by token."""

from __future__ import annotations

import itertools
from collections import abc
from datetime import datetime
from typing import Any

import numpy as np

from lm.data.examples.conversations import source_prompt
from lm.data.tokenizing.chat_template import ChatTemplate, Tools
from lm.decoding.answers import chat_vocabulary
from lm.decoding.sampling import Sampling, row_keys
from lm.decoding.text import text_parts
from lm.errors import UserError
from lm.parallel.mesh import on_mesh
from lm.runs.generation import Generator
from lm.runs.prepare import load_tokenizers

LONGEST_ANSWER = 512  # default maximum number of tokens in an answer


class ChatSession:
    """Generates answers to messages, each with all earlier messages as context.

    The function descriptions in `tools` are passed to the template unchanged. A tool call is part of an answer.

    Raises UserError if neither the tokenizer nor the config of the run provides a chat template.

    Attributes:
        messages: the system prompt, if any, and the messages so far.
        left_out: the number of old messages that were omitted from the context of the last answer.
        is_cut: whether the last answer reached the maximum number of tokens.
    """

    def __init__(self, run: Generator, sampling: Sampling, system: str = "", tools: Tools = None):
        self._config, self._seed, self._system, self._tools = run.config, run.seed, system, tools
        tokenizer = load_tokenizers(run.config, run.directory.root).target
        self._template = ChatTemplate(tokenizer, run.config.data.chat_template, datetime.now())
        question = [{"role": "user", "content": "a"}]
        if tools and self._template.render(question, tools) == self._template.render(question):
            raise UserError("--tools: the chat template does not include tools, so the model would not see them.")
        longest = run.config.model.max_length - 1
        self._max_new = run.max_new_tokens or max(1, min(LONGEST_ANSWER, longest // 2))
        if not 0 < self._max_new < longest:
            raise UserError(f"--max_new_tokens={self._max_new} is out of range; the model has {longest + 1} positions.")
        self._sampler, self._mesh = run.sampler(1, sampling, chat_vocabulary(self._template), self._max_new)
        self.reset()

    def reset(self) -> None:
        """Forgets all messages except the system prompt."""
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": self._system}] if self._system else []
        self._turn, self.left_out, self.is_cut = 0, 0, False

    def answer(self, text: str) -> abc.Generator[str, None, None]:
        """Yields the answer to a message piece by piece.

        If the caller stops early, the pieces yielded so far stay in the history. The oldest turns are left out if the
        conversation is too long for the model. Raises UserError, and forgets the message, if the message alone is too
        long or the template rejects it.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            prompt, source = self._inputs()
        except UserError:
            self.messages = before
            raise
        (key,) = row_keys(self._seed, np.array([self._turn]), np.zeros(1))
        self._turn, written, count = self._turn + 1, [], itertools.count(1)
        self.is_cut = False

        def tokens() -> abc.Iterator[int]:
            for token in self._sampler.stream(prompt, key, source):
                if token in self._template.end_ids:
                    return
                yield token
                self.is_cut = next(count) == self._max_new

        try:
            with on_mesh(self._mesh):
                for part in text_parts(self._template.tokenizer, tokens()):
                    written.append(part)
                    yield part
        finally:
            self.messages = [*self.messages, {"role": "assistant", "content": "".join(written)}] if written else before

    def _inputs(self) -> tuple[list[int], list[int] | None]:
        """Returns the tokens that the decoder continues and, for an encoder-decoder, the source."""
        template, two_sided = self._template, self._config.model.family == "encoder_decoder"
        if two_sided:
            longest_source = self._config.data.source_length
            ids, self.left_out, limit = source_prompt(template, self.messages, self._tools, longest_source)
        else:
            limit = self._config.model.max_length - self._max_new
            ids, self.left_out = template.fitted_prompt(self.messages, self._tools, limit)
        if len(ids) > limit:
            raise UserError(f"the message is too long: it has {len(ids)} tokens, but there is only room for {limit}.")
        if two_sided:
            return self._sampler.vocabulary.output_start, template.tokenizer.source_template.fill(ids)[0].tolist()
        return ids, None
