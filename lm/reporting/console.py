"""What a run prints around the live line; silent in all processes but the first."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import rich.console

from lm.reporting.progress import Progress

LOG_WIDTH = 120  # columns where there is no terminal


class Console:
    """Prints text and rich tables; while a progress line is live, above it."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._progress: Progress | None = None

    def banner(self, title: str) -> None:
        self.print(f"\n--- {title} ---")

    def print(self, *parts: Any) -> None:
        if not self._enabled:
            return
        tty = sys.stdout.isatty()
        buffer = io.StringIO()
        width = shutil.get_terminal_size().columns if tty else LOG_WIDTH
        # Markup off: sample text may hold square brackets.
        console = rich.console.Console(file=buffer, width=width, force_terminal=tty, markup=False, highlight=False)
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
        if self._progress is not None:
            self._progress.message(buffer.getvalue())
        else:
            sys.stdout.write(buffer.getvalue())
            sys.stdout.flush()

    @contextlib.contextmanager
    def above(self, progress: Progress) -> Iterator[None]:
        """Inside the `with`, what is printed goes above this line."""
        self._progress = progress
        try:
            yield
        finally:
            self._progress = None
