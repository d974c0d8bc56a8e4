"""Opens published models: safetensors folders, GGUF files and models on the hub.

Opening a model checks everything except the tensor values. Code from a folder is never run, and pickles are never read.
Symbolic links are followed, because all files in the hub cache are symbolic links.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.files import expanded
from lm.huggingface import gguf, hub
from lm.huggingface.base import CONFIG, GENERATION_CONFIG, Folder
from lm.huggingface.documents import read_object
from lm.huggingface.weights import TensorFile, TensorInfo

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", re.ASCII)  # organisation/name@revision
RUN_SECTIONS = {"model", "data", "train", "optimizer"}  # in the config.json of a run directory
# Weight formats that are not read. Exports omit such files, because they contain the weights from before training.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pkl", ".tflite")
WEIGHT_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin.index.json", ".gguf", *OTHER_WEIGHTS)
CONVERT = (
    "import sys,torch; from safetensors.torch import save_file as s; s({k: v.clone().contiguous() for f in sys.argv[1:]"
    " for k, v in torch.load(f, 'cpu', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})"
)


class SafetensorsFolder(Folder):
    """A folder that contains model.safetensors, or shards and model.safetensors.index.json."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source
        self.config = read_object(path / CONFIG)
        if RUN_SECTIONS <= self.config.keys():
            raise UserError(
                f"{source} is a run directory of this project, not a model folder; use it as --workdir, or export it "
                f"first: python -m lm.hf export --workdir={shlex.quote(source)} --out=FOLDER."
            )
        if os.path.lexists(path / WEIGHTS):
            self._files = {WEIGHTS: TensorFile(path / WEIGHTS)}
            self.tensors = self._files[WEIGHTS].tensors
        elif os.path.lexists(path / INDEX):
            self.tensors = self._read_index()
        else:
            raise UserError(missing_weights(path, source))
        self.other_files: Mapping[str, Path | bytes] = other_files(path)

    def _read_index(self) -> dict[str, TensorInfo]:
        """Opens the shards and returns their tensors in the order of the index."""
        where = self.path / INDEX
        places = read_object(where).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise UserError(f'{where}: expected an object "weight_map" that maps tensor names to file names.')
        self._files = {}
        for name, file in places.items():
            if not isinstance(file, str) or not is_plain(file) or not file.endswith(".safetensors"):
                raise UserError(
                    f"{where}: tensor {name!r:.100} is mapped to {file!r:.100}, which is not the name of a file in "
                    "the folder."
                )
            if file not in self._files:
                self._files[file] = TensorFile(self.path / file)
            if name not in self._files[file].tensors:
                raise UserError(f"{self.path / file} lacks the tensor {name!r:.100}, although {INDEX} lists it there.")
        for file, opened in self._files.items():
            for name in opened.tensors:
                if places.get(name) != file:
                    raise UserError(
                        f"{self.path / file} holds the tensor {name!r:.100}, but {INDEX} does not list it there."
                    )
        return {name: self._files[file].tensors[name] for name, file in places.items()}

    def _read(self, name: str) -> np.ndarray:
        return self._files[self.tensors[name].file].read(name)

    @property
    def generation_config(self) -> dict[str, Any] | None:
        path = self.path / GENERATION_CONFIG
        return read_object(path) if os.path.lexists(path) else None


class KeptFiles(Folder):
    """The files that a run directory keeps from an imported folder, without any tensors."""

    def __init__(self, path: Path) -> None:
        self.source, self.config, self.tensors = str(path), {}, {}
        self.other_files: Mapping[str, Path | bytes] = other_files(path)

    def _read(self, name: str) -> np.ndarray:
        raise KeyError(name)


def open_folder(path: Path | str) -> Folder:
    """Opens a model folder, a GGUF file, or a model on the hub (organisation/name or organisation/name@revision).

    Raises UserError if the model does not exist, is incomplete or damaged, or is in an unsupported format.
    """
    source, found = str(path), expanded(path)
    if not os.path.lexists(found):
        if HUB_NAME.fullmatch(source):
            return SafetensorsFolder(hub.download(source), source)
        raise UserError(
            f"{source}: there is no such folder; specify a folder that contains {CONFIG}, or a model on the hub as "
            "organisation/name."
        )
    if not found.is_dir():
        if found.suffix == ".gguf":
            return gguf.GgufFolder(found, source)
        raise UserError(f"{source} is not a folder; specify the folder that contains {CONFIG}, or a GGUF file.")
    if not os.path.lexists(found / CONFIG):
        files = sorted(each for each in found.iterdir() if each.suffix == ".gguf")
        if len(files) == 1:
            return gguf.GgufFolder(files[0], source)
        problem = (
            f"{len(files)} GGUF files; specify one of them" if files else f"no {CONFIG}, so it is not a model folder"
        )
        raise UserError(f"{source} holds {problem}.")
    return SafetensorsFolder(found, source)


def is_plain(name: str) -> bool:
    """Returns whether a name, which may come from an untrusted file, is a plain file name without a directory part."""
    return name == PurePosixPath(name).name and name not in (".", "..") and not re.search(r"[\\\0]", name)


def missing_weights(path: Path, source: str) -> str:
    """Returns the error message for a folder that contains neither model.safetensors nor an index."""
    names = sorted(each.name for each in path.iterdir())
    pickles = [name for name in names if re.fullmatch(r"pytorch_model(-\d+-of-\d+)?\.bin", name)]
    if pickles:
        pattern = pickles[0] if len(pickles) == 1 else "pytorch_model-*.bin"
        return (
            f"{source} holds its weights only as {pattern}, which this project never unpickles. If PyTorch is "
            f'installed, convert the weights in that folder: python -c "{CONVERT}" {pattern}'
        )
    if "adapter_config.json" in names:
        return f"{source} holds only adapters; merge them into their base model first (peft: merge_and_unload)."
    others = [name for name in names if name.endswith(WEIGHT_ENDINGS)]
    hint = f"; it holds {others[0]!r}, but weights with this name are not read" if others else ""
    return f"{source} holds neither {WEIGHTS} nor {INDEX}{hint}."


def other_files(path: Path) -> dict[str, Path]:
    """Returns the regular files below a folder, keyed by relative path.

    Weights, config.json, generation_config.json and the contents of hidden folders are omitted.
    """
    found = {}
    for directory, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(directory, name)
            relative = file.relative_to(path).as_posix()
            if relative in (CONFIG, GENERATION_CONFIG) or name.endswith(WEIGHT_ENDINGS):
                continue
            try:
                regular = stat.S_ISREG(file.stat().st_mode)
            except OSError:
                regular = False
            if regular:
                found[relative] = file
    return found
