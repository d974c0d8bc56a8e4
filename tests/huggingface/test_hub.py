"""Models of the hub, with a package in place of huggingface_hub, because tests use no network."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lm.errors import UserError
from lm.huggingface.folder import open_folder
from tests.huggingface.bad_folders import TENSORS, good_folder


def install(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[tuple[str, str | None, list[str]]]:
    """Installs a package that gives one answer to all requests. Returns the list of requests."""
    asked = []

    def snapshot_download(repository: str, *, revision: str | None, ignore_patterns: list[str]) -> str:
        asked.append((repository, revision, ignore_patterns))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    package = types.ModuleType("huggingface_hub")
    package.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return asked


def test_model_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    asked = install(monkeypatch, good_folder(tmp_path / "snapshot"))
    for name, revision in (("acme/tiny", None), ("acme/tiny@v1.0", "v1.0"), ("acme/tiny@refs/pr/3", "refs/pr/3")):
        folder = open_folder(name)
        assert folder.source == name
        assert all(np.array_equal(folder.read(key), array) for key, array in TENSORS.items())
        repository, wanted, ignored = asked.pop()
        assert (repository, wanted) == ("acme/tiny", revision)
        assert "*.bin" in ignored and "*.safetensors" not in ignored


@pytest.mark.parametrize("error", [OSError("no route to host\nat all"), ValueError("Repo id must be ..."), KeyError()])
def test_failed_download_gets_one_line(error, monkeypatch):
    install(monkeypatch, error)
    with pytest.raises(UserError, match=r"acme/tiny: there is no such folder, and it cannot be downloaded") as caught:
        open_folder("acme/tiny")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 500


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="run `pip install huggingface_hub`"):
        open_folder("acme/tiny")


@pytest.mark.parametrize(
    "name", ["../tiny", "./tiny", "a/b/c", "/tmp/missing/x", "acme/tiny@", "https://host/acme/tiny"]
)
def test_other_names_are_not_looked_up(name, monkeypatch):
    asked = install(monkeypatch, OSError())
    with pytest.raises(UserError, match="there is no such folder; specify a folder"):
        open_folder(name)
    assert not asked
