"""Atomic writing of files and directories: they appear complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lm.errors import UserError

_temporaries: set[Path] = set()  # of this process


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` stays unchanged. Missing parent directories are
    created. With `durable`, the replacement is atomic even in a power failure. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _temporaries.add(temporary)
    try:
        yield temporary
        if durable:  # flush to disk before renaming
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory `NAME.tmp-*` beside `path`, which is renamed to `path` at the end of the block.

    If the block raises, the temporary directory is removed. Missing parent directories are created. To replace a
    directory, the block must remove the old one. Raises OSError, in particular FileExistsError if `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    _temporaries.add(temporary)
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
        _temporaries.discard(temporary)


def remove_temporaries() -> None:
    """Removes the temporary files and directories of this process, which is about to end."""
    for path in tuple(_temporaries):
        with suppress(OSError):
            if path.is_dir():
                # Another thread may be about to give it its final name, which must not succeed any more.
                os.rename(path, gone := path.with_name(f"{path.name}-removed"))
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def writing_flag(flag: str, path: Path | str) -> Iterator[None]:
    """Converts an OSError raised in the block into a UserError that names the flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be written: {error.strerror or error}.") from None
