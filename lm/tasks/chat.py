"""Chat: learn the answers of the assistant in conversations, as a chat template writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from lm.config import CleaningConfig, Config, DataConfig
from lm.data.examples.conversations import ChatExamples, ChatTokens
from lm.data.reading.conversations import ConversationReader
from lm.data.storing import example_store
from lm.data.storing.example_store import ExampleStore
from lm.data.storing.splits import LabelledCleaner, SplitSource, named_errors
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.tasks.task import SAMPLING, SEARCH, SMOOTHING, PackedTask, Refuse, Stores


class Chat(PackedTask):
    """Supervised fine-tuning. Only the tokens of the answers, including their end tokens, are targets."""

    name = "chat"
    doc = "write the answers of the assistant in conversations"
    families = ("encoder_decoder", "decoder")
    metric_names = ("loss", "perplexity", "token_accuracy")
    settings = SAMPLING | SEARCH | SMOOTHING | {"data.chat_template", "data.pairs.overlong", "data.source_length"}
    noun = "conversations"
    reader = ConversationReader
    writes_text = True
    cleans = False
    plain_text_refusal = "needs conversations; specify them in data.test of a config"

    def check(self, config: Config, refuse: Refuse) -> None:
        super().check(config, refuse)
        if config.model.family == "decoder" and config.data.source_length:
            refuse("data.source_length", "a decoder reads the whole conversation as one text; leave this at 0.")
        if config.data.cleaning != CleaningConfig():
            refuse("data.cleaning", "conversations are never cleaned; leave these settings at their defaults.")

    def console_metrics(self, config: Config) -> tuple[str, ...]:
        return ("loss",)

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

    def examples(self, config: Config, tokenizer: Tokenizer, stores: Stores, train: bool) -> dict[str, ChatExamples]:
        return {name: ChatExamples(store, config, tokenizer, train=train) for name, store in stores.items()}

    def reason_without_examples(self, config: Config) -> str:
        return (
            "no answer of the assistant fits into a row, so there is nothing to train on; raise data.sequence_length, "
            "or set data.pairs.overlong to 'truncate'."
        )
