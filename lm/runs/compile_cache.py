"""The cache of compiled programs: when a command is run again, it loads its programs instead of compiling them.

JAX's cache key covers the program, the compiler and its flags, the devices, and the instruction sets of the CPU, so
different machines may share a directory. Only the first of several processes writes to it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
import zlib
from pathlib import Path

import jax

from lm.config import Config
from lm.parallel.distributed import is_first
from lm.runs.prepare import cache_directory

LARGEST = 2 << 30  # bytes on disk; the programs of a run take a few MB on a CPU, and more on other devices
CHECKED = ".checked"  # file whose modification time records when `tidy` last ran


def use_compile_cache(config: Config | None = None) -> None:
    """Makes JAX store compiled programs below `cache_directory(config)`, and load those that are already there.

    JAX's environment variables take precedence: JAX_COMPILATION_CACHE_DIR names another directory or a bucket, which is
    never tidied, and JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. If the directory is not writable, a note
    is printed; programs are still loaded from it, but not stored in it.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # An entry that cannot be read or written only costs time, and JAX's warnings about it would confuse users, because
    # they refer to lines of JAX's source code.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    enabled: bool = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if not enabled or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    folder, problem = cache_directory(config) / "xla", ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = str(error.strerror)
    if not problem and not os.access(folder, os.W_OK):
        problem = "Permission denied"
    if problem:
        advice = "set LM_CACHE_DIR to a writable directory."
        print(f"note: compiled programs are not stored in {folder} ({problem}); {advice}", file=sys.stderr)
    if folder.is_dir():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if not problem and is_first():
            with contextlib.suppress(OSError):  # for example, if the entries belong to another user
                tidy(folder)


def tidy(folder: Path, largest: int = LARGEST) -> None:
    """Removes entries that a killed process or a full disk left incomplete, because JAX would never replace them.

    Each entry is checked once, the first time that `tidy` runs after the entry was written. If the remaining entries
    exceed `largest` bytes in total, the least recently read or written ones are removed too. May raise OSError if the
    directory or an entry cannot be read or written.
    """
    mark, began = folder / CHECKED, time.time()
    since = mark.stat().st_mtime if mark.exists() else began
    mark.touch()
    found = []
    for path in folder.glob("*-cache"):
        try:
            status = path.stat()
            if status.st_mtime >= since and is_truncated(path):
                path.unlink()
            else:
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
        except FileNotFoundError:  # removed by another process
            continue
    excess = sum(size for _, size, _ in found) - largest
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
    os.utime(mark, (began, began))  # an entry that was written in the meantime is checked next time


def is_truncated(path: Path) -> bool:
    """Returns whether an entry is truncated. An entry in any format other than zlib counts as complete."""
    content = path.read_bytes()
    if content[:1] not in (b"", b"\x78"):  # JAX uses zstandard if it is installed
        return False
    stream = zlib.decompressobj()
    try:
        stream.decompress(content)
    except zlib.error:
        return False  # another format that begins with the same byte
    return not stream.eof
