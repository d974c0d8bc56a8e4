"""Reads individual tensors from safetensors files, and writes safetensors files.

A file starts with the length of its header (8 bytes, little-endian). The header is JSON of the form {name: {"dtype",
"shape", "data_offsets": [begin, end]}}, with offsets relative to the end of the header. The values follow in row-major
order. A safetensors file cannot contain code; see https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.errors import UserError
from lm.huggingface.documents import parse_object, read_head

LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
ALIGNMENT = 8  # bytes; the header is padded with spaces to a multiple of this number
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """The shape and dtype of a tensor, and the name of the file that contains the tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file. Tensors are memory-mapped individually, and no mapping outlives its tensor."""

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises UserError if the file cannot be read, is damaged or has an unsupported dtype."""
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._begins: dict[str, int] = {}  # offsets from the start of the file
        head = read_head(path)
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else LARGEST_HEADER
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(8)
            header = file.read(length) if length < LARGEST_HEADER else b""
        if not header.startswith(b"{"):
            raise UserError(f"{path}: this is not a safetensors file, or it is damaged; download it again.")
        if len(header) < length:
            raise UserError(f"{path} is truncated within its header; download it again.")
        self._read_header(parse_object(header, f"{path}, header"), 8 + length, size)

    def _read_header(self, header: Mapping[str, Any], start: int, size: int) -> None:
        """Reads and checks the header entries. The values start at byte `start` of a file of `size` bytes."""
        spans = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            where = f"{self.path}: tensor {name!r:.100}"
            try:
                kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            except (TypeError, KeyError, ValueError):
                raise UserError(f"{where} must have a dtype, a shape and offsets; download the file again.") from None
            if not isinstance(kind, str) or kind not in DTYPES:
                raise UserError(
                    f"{where} has the dtype {kind!r:.40}, which is not supported; supported: {', '.join(DTYPES)}."
                )
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*shape, begin, end]):
                raise UserError(
                    f"{where} has the invalid shape {shape!r:.80} or invalid offsets; download the file again."
                )
            info = TensorInfo(tuple(shape), DTYPES[kind], self.path.name)
            if end - begin != info.nbytes:
                raise UserError(f"{where} of shape {shape} has {end - begin:,} bytes, not {info.nbytes:,}.")
            self.tensors[name], self._begins[name] = info, start + begin
            spans.append((begin, end, name))
        spans.sort()
        reached = 0
        for begin, end, name in spans:
            if begin != reached:
                raise UserError(f"{self.path}: tensor {name!r:.100} overlaps another tensor or follows a gap.")
            reached = end
        if start + reached != size:
            problem = "is truncated" if size < start + reached else "has bytes after its last tensor"
            raise UserError(f"{self.path} {problem} ({size:,} bytes, not {start + reached:,}); download it again.")

    def read(self, name: str) -> np.ndarray:
        """Returns a read-only, memory-mapped tensor in its stored dtype."""
        info, begin = self.tensors[name], self._begins[name]
        if not info.nbytes:
            return np.zeros(info.shape, info.dtype)
        mapped = np.memmap(self.path, np.uint8, mode="r", offset=begin, shape=(info.nbytes,))
        if begin % info.dtype.itemsize:  # the header was not padded
            return np.frombuffer(mapped.tobytes(), info.dtype).reshape(info.shape)
        return mapped.view(np.ndarray).view(info.dtype).reshape(info.shape)


class TensorWriter:
    """Writes one safetensors file. The shapes must be known in advance, but values may be written in any order."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]) -> None:
        """Creates the file and writes its header. Raises OSError."""
        self._tensors = dict(tensors)
        self._begins: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # As in the safetensors library, the widest dtypes come first, so that every tensor is aligned.
        for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
            info = tensors[name]
            begin, end = end, end + info.nbytes
            header[name] = {"dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
            self._begins[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self._file = open(path, "wb")  # noqa: SIM115  (closed by `close`)
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._start = self._file.tell()
        self._file.truncate(self._start + end)

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes the values of a tensor. Must be called exactly once per tensor. Raises OSError."""
        info = self._tensors.pop(name)
        assert array.shape == info.shape and array.dtype == info.dtype, (name, array.shape, array.dtype, info)
        self._file.seek(self._start + self._begins[name])
        # A transposed array must be made contiguous, or it would be written in column-major order.
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def close(self, *, complete: bool = True) -> None:
        """Closes the file. If `complete`, asserts that every tensor has been written."""
        self._file.close()
        assert not (complete and self._tensors), f"not written: {list(self._tensors)[:5]}"


def split(tensors: Mapping[str, TensorInfo], max_bytes: int) -> list[list[str]]:
    """Divides tensors, in order, into shards of at most `max_bytes` bytes. A larger tensor gets a shard of its own."""
    shards: list[list[str]] = []
    used = 0
    for name, info in tensors.items():
        if not shards or used + info.nbytes > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += info.nbytes
    return shards


def shard_names(number: int) -> Sequence[str]:
    """Returns the file names of a model that consists of `number` shards."""
    if number == 1:
        return ["model.safetensors"]
    return [f"model-{index:05}-of-{number:05}.safetensors" for index in range(1, number + 1)]
