"""Finds the files of a data source, hashes them, and divides them into units that can be read independently."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lm.data.reading import encodings
from lm.errors import UserError

UNIT_BYTES = 1 << 26  # a unit of files is complete once it reaches this size on disk


def find(path: str) -> list[Path]:
    """Returns the files that match a path or a glob, ordered by name. Raises UserError if no file is found."""
    pattern = os.path.expanduser(path)
    if os.path.isfile(pattern):
        return [Path(pattern)]
    if os.path.isdir(pattern):
        raise UserError(f"{path} is a directory; select its files with a glob, e.g. {path}/*.txt")
    if not glob.has_magic(pattern):
        encodings.refuse_unless_file(Path(pattern))
        raise UserError(f"{path}: there is no such file (in {os.getcwd()}).")
    found = sorted(Path(each) for each in glob.glob(pattern, recursive=True) if os.path.isfile(each))
    if not found:
        raise UserError(f"{path}: no file matches this pattern (in {os.getcwd()}).")
    return found


def hashes_of(paths: Iterable[Path], *, is_text: bool = True) -> list[str]:
    """For each file, returns a string with a hash of its content.

    The string also records whether the file is compressed and whether it has single or repeated byte-order marks,
    because earlier versions treated these marks as text.
    """
    hashes = []
    for path in paths:
        with encodings.read_errors(path), path.open("rb") as file:
            marks = ("", " without marks", " without repeated marks")[encodings.marks_in(path) if is_text else 0]
            content = hashlib.file_digest(file, "sha256").hexdigest()
            hashes.append(f"{path.name.endswith('.gz')} {content}{marks}")
    return hashes


def grouped(paths: Iterable[Path]) -> list[list[Path]]:
    """Divides files, in order, into groups of at least UNIT_BYTES bytes each; the last group may be smaller."""
    groups: list[list[Path]] = [[]]
    size = 0
    for path in paths:
        if size >= UNIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += path.stat().st_size
    return groups
