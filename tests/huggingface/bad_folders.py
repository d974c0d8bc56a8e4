"""Model folders with one fault each, made from a good one, and what the message about each must contain."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 3, "hidden_size": 2}
TENSORS = {
    "model.embed_tokens.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "model.norm.weight": np.ones(2, np.float32),
}
FIRST, SECOND = (f"model-0000{index}-of-00002.safetensors" for index in (1, 2))
PLACES = dict(zip(TENSORS, (FIRST, SECOND), strict=True))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"


def good_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, path / "model.safetensors")
    return path


def sharded_folder(path: Path, places: object = PLACES) -> Path:
    """A folder with each tensor in a file of its own, and an index with the given content of "weight_map"."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, file in PLACES.items():
        save_file({name: TENSORS[name]}, path / file)
    index = {"metadata": {"total_size": 32}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def with_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Returns a function that makes a good folder in which the content of one file is replaced."""

    def make(path: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (good_folder(path) / name).write_bytes(data)

    return make


def without(name: str, *others: str) -> Callable[[Path], None]:
    """Returns a function that makes a good folder without one file, but with some other files."""

    def make(path: Path) -> None:
        (good_folder(path) / name).unlink()
        for other in others:
            (path / other).write_bytes(b"\x80\x02.")

    return make


def with_header(header: object, data: bytes = b"") -> Callable[[Path], None]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return with_file("model.safetensors", struct.pack("<Q", len(text)) + text + data)


def with_values(value: float, dtype: type = np.float32) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        tensors = {name: array.astype(dtype) for name, array in TENSORS.items()}
        tensors["model.norm.weight"][1] = value
        save_file(tensors, good_folder(path) / "model.safetensors")

    return make


def with_pipe(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        (good_folder(path) / name).unlink()
        os.mkfifo(path / name)

    return make


def with_places(places: object) -> Callable[[Path], None]:
    return lambda path: sharded_folder(path, places) and None


def in_first(file: str) -> dict[str, str]:
    return {**PLACES, "model.embed_tokens.weight": file}


def truncated(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(good_folder(path) / "model.safetensors", size)


def extended(path: Path) -> None:
    with open(good_folder(path) / "model.safetensors", "ab") as file:
        file.write(b"\0")


def without_shard(path: Path) -> None:
    (sharded_folder(path) / SECOND).unlink()


def with_shard_twice(path: Path) -> None:
    save_file(TENSORS, sharded_folder(path) / SECOND)


def with_index(content: str) -> Callable[[Path], None]:
    return lambda path: (sharded_folder(path) / "model.safetensors.index.json").write_text(content) and None


def weights_are_a_folder(path: Path) -> None:
    (good_folder(path) / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()


def broken_link(path: Path) -> None:
    (good_folder(path) / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("../blobs/1234")


def span(begin: int, end: int, shape: tuple = (1,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


RUN_CONFIG = json.dumps({"model": {}, "data": {}, "train": {}, "optimizer": {}, "objective": {}})
DEEP = "[" * 100_000 + "]" * 100_000
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_config": (without("config.json"), "holds no config.json"),
    "no_weights": (without("model.safetensors"), "holds neither model.safetensors nor model.safetensors.index.json"),
    "no_shard": (without_shard, f"{SECOND} cannot be read: No such file"),
    "broken_link": (broken_link, "model.safetensors cannot be read: No such file"),
    "other_name": (without("model.safetensors", "model.fp16.safetensors"), "'model.fp16.safetensors', but weights"),
    "truncated_length": (truncated(5), "not a safetensors file, or it is damaged"),
    "truncated_header": (truncated(40), "is truncated within its header"),
    "truncated_values": (truncated(180), "is truncated"),
    "extended": (extended, "has bytes after its last tensor"),
    "empty": (truncated(0), "not a safetensors file, or it is damaged"),
    "huge_header": (with_file("model.safetensors", b"\xff" * 64), "not a safetensors file, or it is damaged"),
    "weights_are_a_folder": (weights_are_a_folder, "model.safetensors cannot be read"),
    "pointer_for_weights": (with_file("model.safetensors", POINTER), "is a Git LFS pointer, not the file itself"),
    "pointer_for_config": (with_file("config.json", POINTER), "is a Git LFS pointer, not the file itself"),
    "page_for_weights": (with_file("model.safetensors", "<!DOCTYPE html>\n<html>"), "is an HTML page"),
    "page_for_config": (with_file("config.json", "\n <html><head>"), "is an HTML page"),
    "pickle": (without("model.safetensors", "pytorch_model.bin"), "convert the weights in that folder: python -c"),
    "pickles": (
        without("model.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        "pytorch_model-*.bin",
    ),
    "adapters": (without("model.safetensors", "adapter_config.json"), "holds only adapters"),
    "config_is_a_list": (with_file("config.json", "[]"), "expected a JSON object, but got list"),
    "config_in_latin_1": (with_file("config.json", b'{"a": "\xe9"}'), "not valid UTF-8 text"),
    "config_is_no_json": (with_file("config.json", "{'a': 1}"), "not valid JSON"),
    "name_twice_in_config": (with_file("config.json", '{"a": 1, "a": 2}'), "the name 'a' occurs more than once"),
    "nan_in_config": (with_file("config.json", '{"rope_theta": NaN}'), "NaN is not a usable number"),
    "deep_config": (with_file("config.json", '{"a": ' + DEEP + "}"), "nested more than 100 levels deep"),
    "deep_header": (with_header(b'{"a": ' + DEEP.encode() + b"}"), "nested more than 100 levels deep"),
    "pipe_for_config": (with_pipe("config.json"), "is not a regular file"),
    "pipe_for_weights": (with_pipe("model.safetensors"), "is not a regular file"),
    "run_directory": (with_file("config.json", RUN_CONFIG), "is a run directory of this project"),
    "parent_in_index": (with_places(in_first(f"../x/{FIRST}")), "which is not the name of a file in the folder"),
    "absolute_in_index": (with_places(in_first(f"/tmp/{FIRST}")), "which is not the name of a file in the folder"),
    "folder_in_index": (with_places(in_first(f"x/{FIRST}")), "which is not the name of a file in the folder"),
    "number_in_index": (with_places({"a": 3}), "which is not the name of a file in the folder"),
    "list_in_index": (with_places([FIRST]), 'expected an object "weight_map"'),
    "wrong_shard": (with_places(in_first(SECOND)), "lacks the tensor 'model.embed_tokens.weight'"),
    "unknown_in_shard": (
        with_places({"model.norm.weight": SECOND} | in_first(FIRST) | {"a": FIRST}),
        "lacks the tensor",
    ),
    "not_in_index": (with_shard_twice, "holds the tensor 'model.embed_tokens.weight', but"),
    "name_twice_in_index": (
        with_index(json.dumps({"weight_map": PLACES})[:-2] + f', "model.norm.weight": "{FIRST}"}}}}'),
        "the name 'model.norm.weight' occurs more than once",
    ),
    "name_twice_in_header": (
        with_header(json.dumps({"a": span(0, 4), "b": span(4, 8)}).replace('"b"', '"a"').encode(), bytes(8)),
        "the name 'a' occurs more than once",
    ),
    "unsupported_dtype": (with_header({"a": span(0, 1, dtype="F8_E4M3")}, b"\0"), "'F8_E4M3', which is not supported"),
    "dtype_is_a_list": (with_header({"a": span(0, 1, dtype=[])}, b"\0"), "which is not supported"),
    "wrong_size": (with_header({"a": span(0, 4, (2,))}, bytes(4)), "of shape [2] has 4 bytes, not 8"),
    "negative_shape": (with_header({"a": span(0, 4, (-1, -1))}, bytes(4)), "has the invalid shape [-1, -1]"),
    "huge_shape": (with_header({"a": span(0, 4, (2**62, 4))}, bytes(4)), "has 4 bytes, not 73,786,976"),
    "overlap": (with_header({"a": span(0, 4), "b": span(0, 4)}, bytes(4)), "overlaps another tensor or follows a gap"),
    "gap": (with_header({"a": span(0, 4), "b": span(8, 12)}, bytes(12)), "overlaps another tensor or follows a gap"),
    "no_offsets": (
        with_header({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        "must have a dtype, a shape and offsets",
    ),
    "not_an_entry": (with_header({"a": 3}), "must have a dtype, a shape and offsets"),
    "nan_in_tensor": (with_values(np.nan), "tensor 'model.norm.weight' holds NaN or infinite values"),
    "infinity_in_tensor": (with_values(np.inf), "tensor 'model.norm.weight' holds NaN or infinite values"),
    "negative_infinity_in_tensor": (with_values(-np.inf, np.float16), "holds NaN or infinite values"),
}
