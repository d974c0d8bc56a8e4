"""A model folder in Hugging Face format: config.json, named tensors and other files."""

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
    """A published model, regardless of how it is stored.

    Tensor names and layouts follow the Hugging Face model classes.
    """

    source: str  # a path or a name on the hub, as given by the user
    config: dict[str, Any]  # config.json
    tensors: Mapping[str, TensorInfo]
    # Maps the relative name of each file to its path, or to its contents if it does not exist as a separate file.
    # Weights, config.json and generation_config.json are omitted. To write the files, use `writing.write_files`.
    other_files: Mapping[str, Path | bytes]

    def read(self, name: str) -> np.ndarray:
        """Returns a read-only tensor in its stored dtype, memory-mapped where possible.

        Raises KeyError for an unknown name, and UserError if the tensor contains NaN or infinite values.
        """
        array = self._read(name)
        # `max` returns NaN if any value is NaN, and it needs no extra memory.
        if array.size and array.dtype.kind in "fV" and not (np.isfinite(array.max()) and np.isfinite(array.min())):
            raise UserError(
                f"{self.source}: tensor {name!r} holds NaN or infinite values; use an undamaged copy of the model."
            )
        return array

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """Returns a tensor without checking its values."""

    def content(self, name: str) -> bytes | None:
        """Returns the content of a file such as tokenizer.json, or None if it does not exist.

        Raises UserError if the file cannot be read.
        """
        file = self.other_files.get(name)
        return read_content(file) if isinstance(file, Path) else file

    def read_object(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object in a file such as tokenizer_config.json, or None if there is no such file.

        Raises UserError if the file cannot be read or does not contain a JSON object.
        """
        content = self.content(name)
        return None if content is None else parse_object(content, f"{self.source}/{name}")

    @property
    def generation_config(self) -> dict[str, Any] | None:
        """The JSON object in generation_config.json, or None if there is no such file.

        Raises the same errors as `read_object`.
        """
        return self.read_object(GENERATION_CONFIG)
