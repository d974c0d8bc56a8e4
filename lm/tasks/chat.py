"""Chat: learn to write the assistant's answers in conversations, which a chat template renders as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from lm.config import CleaningConfig, Config, DataConfig
from lm.config.checks import default_of
from lm.data.examples.conversations import ChatExamples, ChatTokens
from lm.data.reading.conversations import Conversation, ConversationReader, text_of
from lm.data.reading.readers import Pair
from lm.data.storing import example_store
from lm.data.storing.example_store import ExampleStore
from lm.data.storing.splits import LabelledCleaner, SplitSource, split_sources
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.chat_template import ChatTemplate, Message, Tools
from lm.decoding.answers import AnswerWriter
from lm.decoding.beam import BeamSettings
from lm.decoding.rows import Report
from lm.errors import named_errors
from lm.evaluation.generation import Generation
from lm.tasks.generating import SCORING, GeneratingTask
from lm.tasks.task import SAMPLING, SEARCH, VOCABULARY, PackedTask, Refuse, Stores

# The beam-search settings with which an encoder-decoder writes its answers. A decoder does not use them.
BEAM_SEARCH = SEARCH - {"eval.generation.max_new_tokens", "eval.generation.batch_size"}
BEAM_SEARCH |= {"eval.generation.training_beams"}


@dataclass(frozen=True)
class Turn(Pair):
    """The last answer of a conversation, and everything before it as readable text and as messages."""

    messages: Sequence[Message]
    tools: Tools

    @classmethod
    def last_of(cls, example: Conversation) -> Turn | None:
        """Returns the turn of the last non-blank answer that follows another message, or None if there is none."""
        for number in range(len(example.messages) - 1, 0, -1):
            message = example.messages[number]
            if message["role"] == "assistant" and (answer := text_of(message).strip()):
                before = example.messages[:number]
                source = "\n".join(f"{each['role']}: {text_of(each)}" for each in before)
                return cls(source, (answer,), before, example.tools)
        return None


class Answers(Generation):
    """Generates the last answer of each conversation, and scores it against the answer in the data."""

    def outputs(
        self, params: Any, pairs: Sequence[Any], settings: BeamSettings, report: Report | None
    ) -> list[list[tuple[str, float]]]:
        setup, config = self._setup, self._setup.config
        template = ChatTemplate(setup.tokenizers.target, config.data.chat_template)
        source_length = config.data.source_length if config.model.family == "encoder_decoder" else 0
        size = config.eval.generation.batch_size
        writer = AnswerWriter(setup.model, params, template, source_length, size, report)
        return writer.write([(pair.messages, pair.tools) for pair in pairs], settings)


class Chat(GeneratingTask, PackedTask):
    """Supervised fine-tuning. Only the tokens of the answers, including their end tokens, are targets.

    If eval.generation.metrics is not empty, evaluations also generate the last answer of each conversation and compare
    it with the answer in the data.
    """

    name = "chat"
    doc = "write the assistant's answers in conversations"
    families = ("encoder_decoder", "decoder")
    settings = SAMPLING | SCORING | SEARCH | VOCABULARY
    settings |= {"data.chat_template", "data.pairs.overlong", "data.source_length"}
    noun = "conversations"
    reader = ConversationReader
    cleans = False
    generation = Answers
    plain_text_refusal = "needs conversations; specify them in data.test of a config"

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.model.family == "decoder" and config.data.source_length:
            refuse("data.source_length", "a decoder reads the whole conversation as one text; leave this at 0.")
        if config.model.family == "decoder":
            for setting in sorted(BEAM_SEARCH):
                default = default_of(setting)
                if attrgetter(setting)(config) != default:
                    refuse(setting, f"a decoder writes its answers greedily; leave this at {default!r}.")
        if config.data.cleaning != CleaningConfig():
            refuse("data.cleaning", "conversations are never cleaned; leave these settings at their defaults.")

    def cleaner(self, data: DataConfig) -> LabelledCleaner:
        return LabelledCleaner(data.cleaning)  # which leaves conversations unchanged

    def texts(self, source: SplitSource, sides: Sequence[str]) -> Iterator[str]:
        return example_store.texts_of(example for example, _ in source.read(*self.open(source)))

    def open_store(
        self, source: SplitSource, config: Config, tokenizers: Tokenizers, cache: Any
    ) -> ExampleStore | None:
        reader, rules = self.open(source)
        text = ChatTemplate(tokenizers.target, config.data.chat_template).text
        encode = partial(ChatTokens.of_conversations, text=text)
        identity = [self.name, config.model.family, text]
        if config.model.family == "encoder_decoder":
            encode = partial(ChatTokens.of_answers, text=text, source_length=config.data.source_length)
            identity.append(str(config.data.source_length))
        with named_errors(source.label):
            return example_store.build(source, reader, rules, tokenizers.target, encode, identity)

    def references(self, config: Config, split: str) -> dict[str, list[Any]]:
        """Returns the last turn of each conversation, in the same order as in the stores."""
        found: dict[str, list[Any]] = {}
        for source in split_sources(config.data, split) if config.eval.generation.metrics else ():
            turns = [Turn.last_of(example) for example, _ in source.read(*self.open(source))]
            if kept := [turn for turn in turns if turn is not None]:
                found[source.name] = kept
        return found

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, ChatExamples]:
        return {name: ChatExamples(store, config, tokenizer, train=train) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return (
            "no answer by the assistant fits in a row, so there is nothing to train on; raise data.sequence_length, "
            "or set data.pairs.overlong to 'truncate'."
        )
