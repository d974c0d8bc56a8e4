"""The restart of a command with huge pages."""

import json
import os
import subprocess
import sys

import pytest

from lm.runs import huge_pages

SCRIPT = """
import json, os, pathlib, sys
from lm.runs import huge_pages
huge_pages.KERNEL, pid = pathlib.Path(sys.argv[1]), sys.argv[2]
huge_pages.restart_with_huge_pages()
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), huge_pages.are_used(), sys.argv[2:]]))
"""
has_tunables = pytest.mark.skipif(not huge_pages.has_setting(), reason="needs glibc 2.35")


@pytest.fixture
def mode(tmp_path):
    """Returns a function that writes the mode of the kernel into a file, and returns its path."""

    def write(text):
        path = tmp_path / "enabled"
        path.write_text(text)
        return path

    return write


def run(path, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "LM_HUGE_PAGES")}
    command = [sys.executable, "-c", SCRIPT, str(path), "a b", "--c='d'"]
    found = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout
    (line,) = found.splitlines()
    return json.loads(line)


@has_tunables
def test_the_same_command_starts_again_with_huge_pages(mode):
    path = mode("always [madvise] never\n")
    assert run(path) == ["glibc.malloc.hugetlb=1", True, ["a b", "--c='d'"]]
    others = "glibc.malloc.perturb=1"
    assert run(path, GLIBC_TUNABLES=others) == [f"{others}:glibc.malloc.hugetlb=1", True, ["a b", "--c='d'"]]


@has_tunables
def test_no_restart_where_it_is_switched_off_or_set_or_of_no_use(mode):
    offered = mode("always [madvise] never\n")
    assert run(offered, LM_HUGE_PAGES="0")[:2] == [None, False]
    assert run(offered, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")[:2] == ["glibc.malloc.hugetlb=0", False]
    assert run(mode("always madvise [never]\n"))[:2] == run(mode("[always] madvise never\n"))[:2] == [None, False]


def test_no_restart_on_other_systems(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    monkeypatch.setattr(huge_pages, "KERNEL", tmp_path / "missing")
    huge_pages.restart_with_huge_pages()
    monkeypatch.delattr(os, "confstr")  # as on Windows
    huge_pages.restart_with_huge_pages()
    assert not huge_pages.are_used()
