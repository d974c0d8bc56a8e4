"""Reads the small files of a model folder, and detects Git LFS pointers and HTML pages stored in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from lm.data.reading.records import parse_json
from lm.errors import UserError
from lm.files import read_file

HEAD_BYTES = 512  # enough of a file to recognise its type


def mistaken(head: bytes) -> str:
    """Describes what is wrong with a file that starts with `head`; returns "" if no problem is found."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull` in the folder, or download the file again"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, perhaps from a failed download; download the file itself"
    return ""


def read_head(path: Path) -> bytes:
    """Returns the first HEAD_BYTES bytes of a file. Raises the same errors as `read_content`."""
    try:
        # O_NONBLOCK ensures that opening a named pipe does not block.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} cannot be read: it is not a regular file.")
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if problem := mistaken(head):
        raise UserError(f"{path} {problem}.")
    return head


def read_content(path: Path) -> bytes:
    """Returns the content of a file. Raises UserError if it cannot be read or is a Git LFS pointer or an HTML page."""
    try:
        content = read_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if problem := mistaken(content[:HEAD_BYTES]):
        raise UserError(f"{path} {problem}.")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises UserError if the file cannot be read, contains anything other than a JSON object, repeats a name within an
    object, or contains NaN or Infinity.
    """
    return parse_object(read_content(path), str(path))


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parses a UTF-8 JSON object. Raises UserError if `read_object` would reject the content."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: expected a JSON object, but this is not valid UTF-8 text.") from None
    value = parse_json(text, where, finite=True)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, but got {type(value).__name__}.")
    return value
