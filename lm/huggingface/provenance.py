"""The `huggingface/` directory of an imported run, which keeps the parts of the published folder that an export needs.

files/                 config.json, generation_config.json and exact copies of all other files except the weights
record.json            the family, the class, and the names and dtypes of the tensors
carried.safetensors    tensors and table rows that the model does not use
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lm.config import Config
from lm.errors import UserError
from lm.huggingface.documents import read_object
from lm.huggingface.weights import DTYPES, NAMES, TensorFile, TensorInfo, TensorWriter

DIRECTORY, RECORD, CARRIED, FILES = "huggingface", "record.json", "carried.safetensors", "files"
FORMAT = 1


@dataclass(frozen=True)
class Record:
    """How the tensors of an imported folder are named and stored."""

    source: str  # the absolute path of the folder or GGUF file, or the name on the hub
    family: str
    architecture: str  # the `transformers` class
    names: dict[str, tuple[str, ...]]  # the family's name for a tensor -> its names in the folder
    dtypes: dict[str, np.dtype]  # tensor name in the folder -> dtype

    def write(self, directory: Path) -> None:
        values = dataclasses.asdict(self) | {"format": FORMAT}
        values["dtypes"] = {name: NAMES[dtype] for name, dtype in self.dtypes.items()}
        (directory / RECORD).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads the record of an imported run. Raises UserError if it is damaged."""
        values = read_object(directory / RECORD)
        try:
            if values.pop("format") != FORMAT:
                raise UserError(f"{directory / RECORD} was written by another version of this code; use that version.")
            values["names"] = {name: tuple(each) for name, each in values["names"].items()}
            values["dtypes"] = {name: DTYPES[dtype] for name, dtype in values["dtypes"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{directory / RECORD} is damaged ({error}); import the model again.") from None


def write_carried(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    if not arrays:
        return
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    writer = TensorWriter(directory / CARRIED, infos)
    for name, array in arrays.items():
        writer.write(name, array)
    writer.close()


def read_carried(directory: Path) -> dict[str, np.ndarray]:
    """Returns the arrays in carried.safetensors, memory-mapped. Raises UserError if the file is damaged."""
    path = directory / CARRIED
    if not path.exists():
        return {}
    file = TensorFile(path)
    return {name: file.read(name) for name in file.tensors}


def provenance_of(root: Path, config: Config, load: Any) -> Path | None:
    """Returns the `huggingface/` directory of a run or of the closest run in its `init_from` chain that has one.

    Returns None if there is no such directory.

    Args:
        load: a function that returns the config of a run directory.
    """
    seen: set[Path] = set()
    while root.resolve() not in seen:
        seen.add(root.resolve())
        if (root / DIRECTORY / RECORD).is_file():
            return root / DIRECTORY
        if not config.init_from or not Path(config.init_from).is_dir():
            return None
        root = Path(config.init_from)
        config = load(root)
    return None
