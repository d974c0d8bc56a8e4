"""Model folders: reading, one line for each kind of bad folder, and writing."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.errors import UserError
from lm.huggingface.folder import open_folder
from lm.huggingface.weights import DTYPES, TensorFile, TensorInfo, TensorWriter
from lm.huggingface.writing import write_folder
from lm.runs.directory import RunDirectory
from tests.huggingface.bad_folders import BAD_FOLDERS, CONFIG, TENSORS, good_folder, sharded_folder


def refusal(path: Path | str) -> str:
    """The message with which opening a folder and reading its tensors is refused."""
    with pytest.raises(UserError) as caught:
        folder = open_folder(path)
        for name in folder.tensors:
            folder.read(name)
    return str(caught.value)


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folder_gets_one_line_and_is_left_alone(kind, tmp_path):
    make, message = BAD_FOLDERS[kind]
    make(tmp_path / "folder")
    before = sorted((path.name, path.lstat().st_size) for path in tmp_path.rglob("*"))
    found = refusal(tmp_path / "folder")
    assert message in found
    assert str(tmp_path / "folder") in found
    assert "\n" not in found and len(found) <= 500
    assert sorted((path.name, path.lstat().st_size) for path in tmp_path.rglob("*")) == before


def test_model_folder_given_as_a_run_directory_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"is a published model, not a run directory; first run: python -m lm.hf import"
    ):
        RunDirectory.existing(good_folder(tmp_path / "folder"))


def test_something_else_than_a_folder_is_refused(tmp_path):
    (tmp_path / "file.txt").write_text("text")
    assert "is not a folder" in refusal(tmp_path / "file.txt")
    assert "there is no such folder" in refusal(tmp_path / "missing")
    assert "there is no such folder" in refusal("gpt2")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "holds 2 GGUF files; specify one of them" in refusal(tmp_path)


def test_pickle_is_converted_by_the_command_in_the_message(tmp_path):
    torch = pytest.importorskip("torch")
    folder = good_folder(tmp_path / "a folder")
    (folder / "model.safetensors").unlink()
    tied = torch.arange(6.0).reshape(3, 2)
    for number, tensors in enumerate([{"a": tied, "b": tied}, {"c": tied.T.to(torch.bfloat16)}], start=1):
        torch.save(tensors, folder / f"pytorch_model-0000{number}-of-00002.bin")
    command = refusal(folder).partition("convert the weights in that folder: ")[2]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)
    found = open_folder(folder)
    assert np.array_equal(found.read("a"), tied.numpy()) and np.array_equal(found.read("b"), tied.numpy())
    assert np.array_equal(found.read("c"), tied.numpy().T.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("make", [good_folder, sharded_folder])
def test_folder_holds_the_tensors_of_its_files(make, tmp_path):
    folder = open_folder(make(tmp_path / "folder"))
    assert folder.config == CONFIG and folder.generation_config is None
    assert list(folder.tensors) == list(TENSORS)
    for name, array in TENSORS.items():
        assert folder.tensors[name].shape == array.shape and folder.tensors[name].dtype == array.dtype
        assert np.array_equal(folder.read(name), array)
        assert not folder.read(name).flags.writeable


def test_folder_of_links_as_in_the_cache_of_the_hub_is_read(tmp_path):
    blobs = sharded_folder(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (blobs / "README.md").write_text("# A model")
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    folder = open_folder(snapshot)
    assert all(np.array_equal(folder.read(name), array) for name, array in TENSORS.items())
    assert folder.content("README.md") == b"# A model"


def test_other_files_are_those_that_hold_no_weights(tmp_path):
    path = good_folder(tmp_path / "folder")
    kept = ["README.md", ".gitattributes", "tokenizer.json", "1_Pooling/config.json", "source.spm"]
    left = ["generation_config.json", "pytorch_model.bin", "onnx/model.onnx", ".git/HEAD", ".cache/a.json", "a.gguf"]
    for name in (*kept, *left):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("{}")
    os.mkfifo(path / "pipe")
    folder = open_folder(path)
    assert sorted(folder.other_files) == sorted(kept)
    assert folder.content("1_Pooling/config.json") == b"{}" and folder.content("vocab.txt") is None
    assert folder.read_object("tokenizer.json") == {} and folder.generation_config == {}


def test_every_dtype_is_read_and_written_as_the_safetensors_library_does(tmp_path):
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    arrays |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float16)}
    save_file(arrays, tmp_path / "theirs")
    writer = TensorWriter(
        tmp_path / "ours", {name: TensorInfo(each.shape, each.dtype) for name, each in arrays.items()}
    )
    for name in reversed(arrays):
        writer.write(name, arrays[name])
    writer.close()
    theirs = load_file(tmp_path / "ours")
    opened = TensorFile(tmp_path / "theirs")
    assert opened.tensors.keys() == theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        for found in (opened.read(name), theirs[name]):
            assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array), name


def test_tensor_at_an_odd_offset_is_read(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "file").write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1, -2]).tobytes())
    assert TensorFile(tmp_path / "file").read("a").tolist() == [1, -2]


# --- writing --------------------------------------------------------------------------------------------------


def write(out: Path, tensors: dict[str, np.ndarray], **options) -> None:
    options = {"config": CONFIG, "generation_config": None, "files": {}, **options}
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()}
    write_folder(out, **{"tensors": infos, "arrays": tensors.items(), **options})


def test_written_folder_is_read_back_to_the_bit(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    arrays = {
        "bf16": bits.view(ml_dtypes.bfloat16),
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "strided": np.arange(12, dtype=np.float16)[::3],
        "integer": np.arange(3, dtype=np.int64)[None],
    }
    files = {"README.md": b"# A model\r\n", "1_Pooling/config.json": b"{ }"}
    write(tmp_path / "out", arrays, generation_config={"eos_token_id": [1, 2]}, files=files)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *("1_Pooling", "README.md", "config.json", "generation_config.json", "model.safetensors")
    ]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    found = open_folder(tmp_path / "out")
    assert found.config == CONFIG and found.generation_config == {"eos_token_id": [1, 2]}
    assert {name: found.content(name) for name in found.other_files} == files
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    for name, array in arrays.items():
        assert theirs[name].tobytes() == found._read(name).tobytes() == array.tobytes(), name


def test_shards_are_filled_in_order_and_listed_in_the_index(tmp_path):
    arrays = {
        name: np.full(size, number, np.float32)
        for number, (name, size) in enumerate(zip("abcde", (5, 5, 30, 1, 9), strict=True))
    }
    write(tmp_path / "out", arrays, max_shard_bytes=40)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    file = "model-0000{}-of-00003.safetensors".format
    assert index["weight_map"] == {"a": file(1), "b": file(1), "c": file(2), "d": file(3), "e": file(3)}
    found = open_folder(tmp_path / "out")
    assert all(np.array_equal(found.read(name), array) for name, array in arrays.items())


def test_existing_or_unwritable_out_is_refused_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for out in ("file", "link", "."):
        with pytest.raises(UserError, match="already exists; choose a new name"):
            write(tmp_path / out, TENSORS)
    with pytest.raises(UserError, match="cannot be written: "):
        write(tmp_path / "file" / "out", TENSORS)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_left_if_a_tensor_or_the_disk_fails(tmp_path):
    def failing(error):
        yield next(iter(TENSORS.items()))
        raise error

    for error in (UserError("bad tensor"), OSError(28, "No space left on device"), KeyboardInterrupt()):
        expected = UserError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected, match=r"^$|bad tensor|No space left"):
            write(tmp_path / "out", TENSORS, arrays=failing(error))
        assert list(tmp_path.iterdir()) == []


def test_folder_that_appears_while_another_is_written_is_kept(tmp_path):
    def interrupted():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        yield from TENSORS.items()

    with pytest.raises(UserError, match="already exists"):
        write(tmp_path / "out", TENSORS, arrays=interrupted())
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["theirs"]


def test_pipe_is_refused_at_once(tmp_path):
    make, message = BAD_FOLDERS["pipe_for_weights"]
    make(tmp_path / "folder")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(refusal(tmp_path / "folder")), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert found and message in found[0]
