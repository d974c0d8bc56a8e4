"""The console of a run, which prints nothing in processes other than the first."""

from __future__ import annotations

from typing import Any, TextIO

from lm.reporting.progress import Progress, rich_console


class Console:
    """Prints text and rich tables; while a progress line is shown, above it."""

    def __init__(self, enabled: bool, stream: TextIO | None = None) -> None:
        self._console = rich_console(stream, enabled=enabled)

    def banner(self, title: str) -> None:
        self.print(f"\n--- {title} ---")

    def print(self, *parts: Any) -> None:
        for part in parts:
            self._console.print(part, soft_wrap=isinstance(part, str))

    def progress(self, total_steps: int, start_step: int = 0) -> Progress:
        """Returns a progress line, to be used in a `with` block."""
        return Progress(self._console, total_steps, start_step)
