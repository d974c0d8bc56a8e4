"""Counts the evaluation examples that also occur in the training data: exact duplicates after cleaning, found by hash.

E is the number of examples.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lm.config import DataConfig, SourceConfig
from lm.data.reading import FORMATS
from lm.data.reading.format import FileFormat, Files
from lm.data.storing.splits import split_sources
from lm.errors import UserError
from lm.files import read_file, replacing

MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, because multiplication by odd numbers is invertible modulo 2^64


def combined(first_E: np.ndarray, second_E: np.ndarray) -> np.ndarray:
    """Returns a hash of each pair, uint64 (E,), from the hashes of its two sides. The order of the sides matters."""
    return np.asarray(first_E) * MIX + (np.asarray(second_E) ^ MIX)


@dataclass(frozen=True)
class Overlap:
    total: int  # evaluation examples
    same: int  # exact duplicates of training examples
    same_input: int  # examples whose input is in the training data, but with a different target or label

    def __str__(self) -> str:
        more = f"; {self.same_input:,} with the same input but a different target" if self.same_input else ""
        return f"{self.same:,} of {self.total:,} (exact duplicates){more}"

    def __bool__(self) -> bool:
        return self.same + self.same_input > 0


@dataclass(frozen=True)
class Hashes:
    """The hashes of a split's examples, as two sorted uint64 arrays without repeated values."""

    inputs: np.ndarray  # hashes of inputs alone: documents, sources of pairs, texts without their labels
    examples: np.ndarray  # hashes of whole examples

    @classmethod
    def of(cls, stores: Mapping[str, Any]) -> Self:
        return cls(*map(np.unique, _hashes_of(stores)))

    def overlap(self, stores: Mapping[str, Any]) -> Overlap:
        """Counts the examples of an evaluation split that also occur in this split, including repetitions."""
        inputs_E, examples_E = _hashes_of(stores)
        same_E = np.isin(examples_E, self.examples)
        same_input_E = np.isin(inputs_E, self.inputs) & ~same_E
        return Overlap(len(examples_E), int(same_E.sum()), int(same_input_E.sum()))

    def save(self, path: Path) -> None:
        """Writes the hashes to a file atomically. May raise OSError."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, inputs=self.inputs, examples=self.examples)

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Reads a file written by `save`, or returns None if the file is missing (as in older runs) or damaged."""
        try:
            with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as arrays:
                return cls(arrays["inputs"], arrays["examples"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None


def files_read_differently(data: DataConfig, split: str) -> list[str]:
    """Returns a message for each pair of evaluation and training data sources that divide the same file differently.

    Hashes cannot reveal an overlap if, for example, each training document is a whole file but each test document is a
    single line.
    """
    training = [(each, _files_of(each.config)) for each in split_sources(data, "train")]
    lines = []
    for source in split_sources(data, split) if getattr(data, split) else ():
        for other, trained in training:
            both = sorted(_files_of(source.config) & trained)
            if both and _how_read(source.config) != _how_read(other.config):
                more = f" and {len(both) - 1:,} more files" if len(both) > 1 else ""
                lines.append(f"{source.label} and {other.label} read {both[0]}{more}, but extract different examples")
    return lines


def _files_of(source: SourceConfig) -> set[Path]:
    """Returns the files of a data source, or an empty set if they are missing (eval.py needs no training data)."""
    if issubclass(FORMATS[source.kind], FileFormat):
        with contextlib.suppress(UserError):
            return {path.resolve() for path in Files(source.path).found}
    return set()


def _how_read(source: SourceConfig) -> dict[str, Any]:
    """Returns the settings of a source that affect how a file is read."""
    return {name: each for name, each in vars(source).items() if name not in ("path", "target_path", "part", "weight")}


def _hashes_of(stores: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Yields the input hashes of all stores, then the hashes of their whole examples, uint64 (E,) each."""
    return map(np.concatenate, zip(*(store.hashes_of_examples() for store in stores.values()), strict=True))
