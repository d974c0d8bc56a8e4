"""What the examples of all labelled tasks have in common: `bos text eos`, or `bos A eos B eos` with types 0 and 1.

They are the same in every epoch. In training the weights are those of the labels (objective.class_weights or
balance_classes), otherwise 1, so that an evaluation's loss is the mean over its examples.

Shape letters: E examples of this set, T tokens of one of them, C labels.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.examples.example import Example, Examples
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.base import Tokenizer
from lm.errors import UserError

SHORTEST = 8  # tokens: a pair's special tokens and a little of each text


class LabelledExamples(Examples):
    """Pickles without the texts of the store.

    Attributes:
        example_of: int64 (E,), the number in the store of the raw example that each example is (a part of).
        notes: how many examples were cut, and why.
    """

    example_of: np.ndarray

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
        return {**self.__dict__, "store": dataclasses.replace(self.store, raw=[])}

    def __len__(self) -> int:
        return len(self.example_of)

    @property
    def text(self) -> dict[str, int]:
        counts = self.store.counts
        return {"documents": counts["examples"], "bytes": 0, "words": 0, "unknown": counts["unknown"]}

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        return (self._sizes,)

    @abc.abstractmethod
    def make(self, epoch: int, index: int) -> Example: ...

    def _example(self, first: np.ndarray, second: np.ndarray | None, *, real_targets: bool = False) -> Example:
        """An example of one or two texts that predicts nothing yet."""
        parts: list[Any] = [[self._bos], first, [self._eos], *([] if second is None else [second, [self._eos]])]
        tokens_T = np.concatenate(parts).astype(np.int32)
        types_T = np.zeros(len(tokens_T), np.int32)
        types_T[len(first) + 2 :] = 1
        targets_T = np.zeros(len(tokens_T), np.float32 if real_targets else np.int32)
        return Example(tokens_T, targets_T, np.zeros(len(tokens_T), np.float32), types_T)

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
        total = sum(counts.values())
        return np.array(
            [total / (len(labels) * counts.get(label, total / len(labels))) for label in labels], np.float32
        )
    return np.ones(len(labels), np.float32)


def label_numbers(labels: Sequence[str], config: Config) -> np.ndarray:
    """Returns the index of each label in data.labels, int32. All are there: see `example_store.check_labels`."""
    numbers = {label: number for number, label in enumerate(config.data.labels)}
    return np.array([numbers[label] for label in labels], np.int32)
