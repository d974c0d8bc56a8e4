"""Writes files and directories atomically, so that they appear complete or not at all, and parses and hashes JSON.

A process that is killed leaves its temporary file (`.NAME.PID.tmp`) or directory (`NAME.tmp-PID-*`) behind. `replacing`
and `remove_leftovers` remove such leftovers.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lm.errors import UserError

TEMPORARY_FILE = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")
TEMPORARY_DIRECTORY = re.compile(r"(?P<name>.+)\.tmp-(?P<pid>\d+)-\w{8}(-removed)?")
DEEPEST_JSON = 100  # levels of nesting; Python's recursion limit allows a few hundred
TOO_DEEP = f"it is nested more than {DEEPEST_JSON} levels deep"
_temporaries: set[Path] = set()  # the temporary files and directories of this process


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`. At the end of the block, the file at this path is renamed to `path`.

    If the block raises an error, the temporary file is removed and `path` stays unchanged. Missing parent directories
    are created. If `durable` is true, the replacement is atomic even if the power fails. May raise OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
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


def write_texts(contents: Mapping[Path, str]) -> None:
    """Writes or replaces UTF-8 files. If a file cannot be written, raises OSError and keeps all old files."""
    with ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(replacing(path)).write_text(content, encoding="utf-8")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Like `replacing`, but yields a directory. To replace a directory, the block must remove the old one.

    Raises OSError, in particular FileExistsError if `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-{os.getpid()}-", dir=path.parent))
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
                # Another thread may be about to rename the directory to its final name; that must fail now.
                os.rename(path, gone := path.with_name(f"{path.name}-removed"))
                shutil.rmtree(gone, ignore_errors=True)
            else:
                path.unlink()


def remove_leftovers(directory: Path, name: str = "") -> None:
    """Removes the temporary files and directories left by killed processes: all of them, or those for one `name`.

    A process on another machine that shares the file system is not recognised as running. Removing the temporary
    file of such a process makes that process fail, but damages nothing.
    """
    for each in directory.iterdir() if directory.is_dir() else ():
        is_directory = each.is_dir() and not each.is_symlink()
        found = (TEMPORARY_DIRECTORY if is_directory else TEMPORARY_FILE).fullmatch(each.name)
        if found and name in ("", found["name"]) and not _is_running(int(found["pid"])):
            if is_directory:
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    """Returns whether another process on this machine has this process ID."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return pid != os.getpid()  # a process in an earlier container may have had the same process ID


def check_below(path: Path, root: Path) -> None:
    """Raises OSError if `path`, which must lie under `root`, contains a symbolic link that points outside `root`."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise OSError(errno.EPERM, "a symbolic link leads out of the run directory", str(path))


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Converts an OSError raised in the block into a UserError that names `path`, a file or directory of a run."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. The previous content is intact; free some space "
            "or grant access, then run the command again."
        ) from error


@contextmanager
def writing_flag(flag: str, path: Path | str) -> Iterator[None]:
    """Converts an OSError raised in the block into a UserError that names the flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be written: {error.strerror or error}.") from None


def read_file(path: Path) -> bytes:
    """Returns the content of a regular file.

    Raises OSError on failure, and for special files such as named pipes, because reading them might block forever.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        return file.read()


def expanded(path: Path | str) -> Path:
    """Returns a path with "~" replaced by a home directory. Raises UserError if that directory is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        problem = "there is no such user, or no home directory is known"
        raise UserError(f"{path}: {problem}; give a full path, set HOME or, for the cache, set LM_CACHE_DIR.") from None


def parse_json(content: str | bytes) -> Any:
    """Parses a JSON value. Raises ValueError if the content is invalid or nested more than DEEPEST_JSON levels deep."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    brackets = "[{" if isinstance(content, str) else (b"[", b"{")
    if sum(map(content.count, brackets)) > DEEPEST_JSON:  # type: ignore[arg-type]
        check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError if a parsed JSON value is nested more than DEEPEST_JSON levels deep."""
    level = [value]
    for _ in range(DEEPEST_JSON + 1):
        containers = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)
        ]
        level = list(itertools.chain.from_iterable(containers))
    if level:
        raise ValueError(TOO_DEEP)


def well_formed(text: str) -> str:
    """Returns the text with surrogate pairs joined into characters and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def hash_of(*parts: str) -> str:
    """Returns the SHA-256 of the parts, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
