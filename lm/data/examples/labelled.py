"""Examples with labels: `bos text eos`, or `bos A eos B eos` with types 0 and 1. Here those of texts and of text pairs.

They are the same in every epoch. In training the weights are those of the labels (objective.class_weights or
balance_classes), otherwise 1, so that the loss of an evaluation is the mean over its examples.

Shape letters: E examples of a set, T tokens of one of them, C labels, N tokens of all texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example, Examples, framed
from lm.data.reading.raw import Labelled
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError

SHORTEST = 8  # tokens: a pair's special tokens and a little of each text
TEXTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in two flat arrays, which are cheap to send to another process."""

    flat_N: np.ndarray  # int32, all rows, one after another
    starts: np.ndarray  # int64 (rows + 1,)

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Ragged:
        arrays = [np.asarray(row, np.int32) for row in rows]
        starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *arrays]), starts)

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
        """Returns the tokens of each text, without special tokens."""
        firsts = range(0, len(texts), TEXTS_AT_ONCE)
        return cls.of(row for i in firsts for row in tokenizer.encode_batch(texts[i : i + TEXTS_AT_ONCE]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat_N[self.starts[row] : self.starts[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,)."""
        return np.diff(self.starts)


class LabelledExamples(Examples):
    """Base of the examples of all labelled tasks. Pickles without the texts of the store."""

    example_of: np.ndarray  # int64 (E,), the number of the raw example that each example is, or is cut from

    def __init__(self, store: ExampleStore, config: Config, tokenizer: Tokenizer):
        self.store = store
        self.notes: list[str] = []
        self._length = config.data.sequence_length
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
        self._sizes = np.zeros(0, np.int64)
        if self._length < SHORTEST:
            raise UserError(
                f"config.data.sequence_length: {self._length} is too short for objective.name={config.objective.name}; "
                f"set it to {SHORTEST} or more."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "store": dataclasses.replace(self.store, raw=[])}

    def __len__(self) -> int:
        return len(self.example_of)

    @property
    def text(self) -> dict[str, int]:
        counts = self.store.counts
        return {"documents": counts["examples"], "bytes": 0, "words": 0, "unknown": counts["unknown"]}

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (self._sizes,)

    def _example(self, *texts: np.ndarray, targets: Any = np.int32) -> Example:
        """Returns an example of one or two texts that predicts nothing yet; `targets` is their dtype."""
        tokens_T, types_T = framed(self._bos, self._eos, *texts)
        return Example(tokens_T, np.zeros(len(tokens_T), targets), np.zeros(len(tokens_T), np.float32), types_T)

    def _note_cut(self, number: int, total: int, what: str) -> None:
        if number:
            self.notes.append(f"{number:,} of {total:,} {what} (data.sequence_length={self._length})")


def label_weights(config: Config, store: ExampleStore, train: bool) -> np.ndarray:
    """Returns the weight of each label in data.labels, float32 (C,).

    Balanced: n / (C n_c) for label c, from the labels of the whole split; 1 for a label that does not occur.
    """
    labels, counts = config.data.labels, store.label_counts
    if train and config.objective.class_weights:
        return np.array(config.objective.class_weights, np.float32)
    if train and config.objective.balance_classes:
        total, C = sum(counts.values()), len(labels)
        return np.array([total / (C * counts.get(label, total / C)) for label in labels], np.float32)
    return np.ones(len(labels), np.float32)


def label_numbers(labels: Sequence[str], config: Config) -> np.ndarray:
    """Returns the index of each label in data.labels, int32. All are there: see `example_store.check_labels`."""
    numbers = {label: number for number, label in enumerate(config.data.labels)}
    return np.array([numbers[label] for label in labels], np.int32)


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
        self._tokens, self._at_end = store.tokens, pooling == "last"
        first, second, special = self._tokens.texts.lengths, np.zeros(len(self._tokens.texts), np.int64), 2
        if self._tokens.pairs is not None:
            second, special = self._tokens.pairs.lengths, 3
        capacity = self._length - special
        self._second = np.minimum(second, np.maximum(capacity // 2, capacity - first))
        self._first = np.minimum(first, capacity - self._second)
        self._sizes = self._first + self._second + special
        self._note_cut(int(np.sum(self._sizes < first + second + special)), len(first), "texts are cut")
        self.example_of = np.arange(len(first))
        labels = [example.label for example in store.raw if isinstance(example, Labelled)]
        if real:
            self._targets = np.array([float(label) for label in labels], np.float32)
            self._weights = np.ones(len(labels), np.float32)
        else:
            self._targets = label_numbers(labels, config)
            self._weights = label_weights(config, store, train)[self._targets]

    def label_index(self, index: int) -> int:
        """Returns the index of the token whose logits stand for the whole text."""
        return int(self._sizes[index]) - 1 if self._at_end else 0

    def make(self, epoch: int, index: int) -> Example:
        texts = [self._tokens.texts[index][: self._first[index]]]
        if self._tokens.pairs is not None:
            texts.append(self._tokens.pairs[index][: self._second[index]])
        example, at = self._example(*texts, targets=self._targets.dtype), self.label_index(index)
        example.targets_T[at] = self._targets[index]
        example.weights_T[at] = self._weights[index]
        return example
