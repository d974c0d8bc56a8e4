"""Errors of storage as Orbax and TensorStore report them, and how to keep their other messages off the terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

# Orbax logs what it does, and repeats each error as a traceback, through the absl logger. Its errors reach
# us as exceptions; the rest is for its own developers.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def machine_trouble(error: BaseException) -> str:
    """Returns what is wrong with the machine rather than the files, or "". TensorStore gives errno in words only."""
    known = (
        "No space left on device",
        "Disk quota exceeded",
        "File too large",
        "Permission denied",
        "Read-only file system",
        "Too many open files",
        "Cannot allocate memory",
        "RESOURCE_EXHAUSTED",
    )
    return next((each for each in known if each in str(error)), "")


@contextmanager
def hushed() -> Iterator[None]:
    """Keeps tracebacks that the libraries below print (rather than raise) off the terminal."""
    asyncio_log, printed = logging.getLogger("asyncio"), io.StringIO()
    was = asyncio_log.disabled, sys.unraisablehook
    asyncio_log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        with redirect_stderr(printed):
            yield
    finally:
        asyncio_log.disabled, sys.unraisablehook = was
