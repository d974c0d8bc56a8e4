"""A model folder in the format of Hugging Face: config.json, tensors by name, and other files."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.huggingface.documents import parse_object, read_content
from lm.huggingface.weights import TensorInfo

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


class Folder(abc.ABC):
    """A published model, however it is stored. Tensors have the names and layouts of Hugging Face's classes."""

    source: str  # what the user named: a path, or a name on the hub
    config: dict[str, Any]  # config.json
    tensors: Mapping[str, TensorInfo]
    # The files that are neither weights nor config.json or generation_config.json, by relative name: their paths, or
    # their contents if they are not files of their own. To write them, use `writing.write_files`.
    other_files: Mapping[str, Path | bytes]

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in its own dtype, memory-mapped where possible and read-only.

        Raises KeyError for an unknown name, and UserError if there is a NaN or an infinite value.
        """
        array = self._read(name)
        # The largest value is NaN if any value is, and finding it takes no memory.
        if array.size and array.dtype.kind in "fV" and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            raise UserError(f"{self.source}: tensor {name!r} holds NaN or infinite values; use an undamaged model.")
        return array

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """Returns a tensor."""

    def content(self, name: str) -> bytes | None:
        """Returns the content of a file such as tokenizer.json, or None if there is none. Raises UserError."""
        file = self.other_files.get(name)
        return read_content(file) if isinstance(file, Path) else file

    def read_object(self, name: str) -> dict[str, Any] | None:
        """Returns the object in a file such as tokenizer_config.json, or None if there is none. Raises UserError."""
        content = self.content(name)
        return None if content is None else parse_object(content, f"{self.source}/{name}")

    @property
    def generation_config(self) -> dict[str, Any] | None:
        """The object in generation_config.json, or None if there is none. Raises UserError."""
        return self.read_object(GENERATION_CONFIG)
