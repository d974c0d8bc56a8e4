"""Writes model folders atomically, one tensor at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.files import new_directory, remove_leftovers, writing_flag
from lm.huggingface.base import CONFIG, GENERATION_CONFIG
from lm.huggingface.folder import INDEX
from lm.huggingface.weights import TensorInfo, TensorWriter, shard_names, split
from lm.reporting.progress import counting

MAX_SHARD_BYTES = 5_000_000_000  # as in the transformers library


def write_folder(
    out: Path,
    *,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None,
    tensors: Mapping[str, TensorInfo],
    arrays: Iterable[tuple[str, np.ndarray]],
    files: Mapping[str, Path | bytes],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model folder, which must not exist yet and appears only when it is complete.

    Args:
      out: The folder to create, the value of --out.
      config: The content of config.json.
      generation_config: The content of generation_config.json, or None to omit the file.
      tensors: The shape and dtype of every tensor. Shards follow this order.
      arrays: The values of every tensor by name, in any order. Only one array is held in memory at a time.
      files: Other files by relative name: their contents, or the paths of files to copy, as in `Folder.other_files`.
      max_shard_bytes: Size limit of a file, exceeded only if a single tensor is larger than the limit.

    Shows a progress line on a terminal. Raises UserError if `out` exists or cannot be written.
    """
    with writing_folder(out) as folder:
        write_files(folder, files)
        write_object(folder / CONFIG, config)
        if generation_config is not None:
            write_object(folder / GENERATION_CONFIG, generation_config)
        _write_weights(folder, tensors, arrays, max_shard_bytes)


@contextmanager
def writing_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `out` when the block ends, or is removed if the block raises an error.

    Raises UserError if `out` exists or cannot be written.
    """
    check_out(out)
    with writing_flag("out", out):
        remove_leftovers(out.parent, out.name)
    with writing_flag("out", out), new_directory(out) as temporary:
        yield temporary


def write_files(directory: Path, files: Mapping[str, Path | bytes]) -> None:
    """Writes files. `files` maps relative names to contents or to the paths of files to copy. Raises OSError."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def check_out(out: Path) -> None:
    """Raises UserError if the folder to create already exists."""
    if os.path.lexists(out):
        raise UserError(f"--out={out} already exists; choose a new name.")


def _write_weights(
    folder: Path, tensors: Mapping[str, TensorInfo], arrays: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    shards = split(tensors, max_shard_bytes)
    names = shard_names(len(shards))
    files = {file: {name: tensors[name] for name in shard} for file, shard in zip(names, shards, strict=True)}
    write_tensors(folder, files, arrays)
    if len(shards) > 1:
        metadata = {"total_size": sum(info.nbytes for info in tensors.values())}
        places = {name: file for file, shard in files.items() for name in shard}
        write_object(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def write_tensors(
    folder: Path, files: Mapping[str, Mapping[str, TensorInfo]], arrays: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes safetensors files. `files` maps file names to their tensors; `arrays` may be in any order."""
    places = {name: file for file, tensors in files.items() for name in tensors}
    writers: dict[str, TensorWriter] = {}
    complete = False
    try:
        for file, tensors in files.items():
            writers[file] = TensorWriter(folder / file, tensors)
        with counting(len(places), "tensors") as report:
            for number, (name, array) in enumerate(arrays, start=1):
                writers[places[name]].write(name, array)
                if report is not None:
                    report(number, len(places))
        complete = True
    finally:
        for writer in writers.values():
            writer.close(complete=complete)


def write_object(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file. Raises OSError."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
