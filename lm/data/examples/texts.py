"""Examples of whole texts, or pairs of texts, with a label or a number each.

Shape letters: E examples, T tokens of one of them, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example
from lm.data.examples.labelled import LabelledExamples, label_numbers, label_weights
from lm.data.examples.ragged import Ragged
from lm.data.reading.raw import Labelled
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer


@dataclass(frozen=True)
class TextTokens:
    """The tokens of texts, or of pairs of texts."""

    texts: Ragged  # E rows
    pairs: Ragged | None  # E rows

    @classmethod
    def encode(cls, examples: Sequence[Labelled], tokenizer: Tokenizer) -> TextTokens:
        texts = Ragged.encode(tokenizer, [each.text for each in examples])
        seconds = [each.pair for each in examples if each.pair is not None]
        assert len(seconds) in (0, len(examples)), "either all are pairs or none"
        return cls(texts, Ragged.encode(tokenizer, seconds) if seconds else None)

    @property
    def flat(self) -> list[np.ndarray]:
        """All tokens."""
        return [self.texts.flat_N, *([self.pairs.flat_N] if self.pairs else [])]


class TextExamples(LabelledExamples):
    """For classification and regression. The label is the target of one token, see `label_index`.

    A text that is too long is cut at its end; of a pair the longer text is cut, token by token.

    Args:
        real: labels are numbers (regression).
        pooling: "last": the last token has the label; otherwise the first.
    """

    def __init__(
        self, store: ExampleStore, config: Config, tokenizer: Tokenizer, train: bool, *, real: bool, pooling: str
    ):
        super().__init__(store, config, tokenizer)
        assert isinstance(store.tokens, TextTokens), store.tokens
        self._tokens = store.tokens
        self._at_end = pooling == "last"
        first, second = self._tokens.texts.lengths, np.zeros(len(self._tokens.texts), np.int64)
        if self._tokens.pairs is None:
            self._first = np.minimum(first, self._length - 2)
            self._second, special = second, 2
        else:
            second, special = self._tokens.pairs.lengths, 3
            capacity = self._length - 3
            self._second = np.minimum(second, np.maximum(capacity // 2, capacity - first))
            self._first = np.minimum(first, capacity - self._second)
        self._sizes = self._first + self._second + special
        self._note_cut(int(np.sum(self._sizes < first + second + special)), len(first), "texts are cut")
        self.example_of = np.arange(len(first))
        self._real = real
        labels = [example.label for example in store.raw if isinstance(example, Labelled)]
        if self._real:
            self._targets = np.array([float(label) for label in labels], np.float32)
            self._weights = np.ones(len(labels), np.float32)
        else:
            self._targets = label_numbers(labels, config)
            self._weights = label_weights(config, store, train)[self._targets]

    def label_index(self, index: int) -> int:
        """Returns the index of the token whose logits stand for the whole text."""
        return int(self._sizes[index]) - 1 if self._at_end else 0

    def make(self, epoch: int, index: int) -> Example:
        first = self._tokens.texts[index][: self._first[index]]
        pairs = self._tokens.pairs
        second = None if pairs is None else pairs[index][: self._second[index]]
        example = self._example(first, second, real_targets=self._real)
        at = self.label_index(index)
        example.targets_T[at] = self._targets[index]
        example.weights_T[at] = self._weights[index]
        return example
