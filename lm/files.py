"""Atomic writing of files and directories, which appear complete or not at all, and the parsing of their content."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.errors import UserError

DEEPEST_JSON = 100  # levels of nesting; Python's recursion limit allows a few hundred


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` stays unchanged. Missing parent directories are
    created. With `durable`, the replacement is atomic even in a power failure. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:  # flush to disk before renaming
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory `NAME.tmp-*` beside `path`, which is renamed to `path` at the end of the block.

    If the block raises, the temporary directory is removed. Missing parent directories are created. To replace a
    directory, the block must remove the old one. Raises OSError, in particular FileExistsError if `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp grants access to the owner only
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError as error:  # the errno depends on the file system
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, "already exists", str(path)) from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing_flag(flag: str, path: Path | str) -> Iterator[None]:
    """Converts an OSError raised in the block into a UserError that names the flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be written: {error.strerror or error}.") from None


def parse_json(content: str | bytes) -> Any:
    """Returns a parsed JSON value. Raises ValueError if it is invalid or nested more than DEEPEST_JSON levels deep."""
    too_deep = f"it is nested more than {DEEPEST_JSON} levels deep"
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(too_deep) from None
    brackets = "[{" if isinstance(content, str) else (b"[", b"{")
    if sum(map(content.count, brackets)) > DEEPEST_JSON:  # type: ignore[arg-type]
        level = [value]
        for _ in range(DEEPEST_JSON + 1):
            level = [inner for each in level for inner in _inside(each)]
        if level:
            raise ValueError(too_deep)
    return value


def _inside(value: Any) -> Iterable[Any]:
    """Returns the values directly inside a parsed JSON value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def well_formed(text: str) -> str:
    """Returns the text with each surrogate pair as one character and each lone surrogate replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
