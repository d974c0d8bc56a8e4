"""The live line: where training is, how fast it goes and when it will be done.

On a terminal one line is redrawn in place and messages appear above it. Elsewhere (a file, a pipe, a
cluster's log) plain lines are printed now and then, without control characters. Nothing here waits
for a device: figures are shown when the loop hands them over.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

REDRAW_SECONDS = 0.1  # on a terminal
PLAIN_SECONDS = 10.0  # between lines elsewhere


class Progress:
    """Shows the state of a run of `total_steps` that (re)starts after `start_step`.

    Use it as a context manager, or call `close`. With `enabled=False` (processes other than the
    first) nothing is written.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._step = total_steps, start_step
        self._stream: TextIO = sys.stdout if stream is None else stream
        self._enabled, self._clock = enabled, clock
        self._live = enabled and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._figures: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # step and time that the estimate counts from
        self._drawn_at = -math.inf
        self._drawn_step: int | None = None
        self._unshown = False  # plain lines only: there is a loss that no line has shown yet

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens_per_second: float | None = None,
        peak_share: float | None = None,
        valid_loss: float | None = None,
    ) -> None:
        """Tells that `step` is done, with the figures that are new; the others stay as they were.

        `peak_share` is the achieved share of the devices' peak FLOP/s, 0 to 1. The time left is
        estimated from the steps after the first call, so that compilation does not count.
        """
        new = {
            "loss": loss,
            "learning_rate": learning_rate,
            "tokens_per_second": tokens_per_second,
            "peak_share": peak_share,
            "valid_loss": valid_loss,
        }
        self._figures.update({name: value for name, value in new.items() if value is not None})
        now, self._step = self._clock(), step
        if self._first is None:
            self._first = (step, now)
        if not self._enabled:
            return
        if self._live:
            if now - self._drawn_at >= REDRAW_SECONDS or step >= self._total:
                self._draw(now)
        elif loss is not None:
            self._unshown = True
            if now - self._drawn_at >= PLAIN_SECONDS:
                self._draw(now)

    def message(self, text: str) -> None:
        """Prints lines above the live line."""
        if not self._enabled:
            return
        if self._live:
            self._stream.write("\r\x1b[K")
        self._stream.write(text.rstrip("\n") + "\n")
        if self._live and self._drawn_step is not None:
            self._draw(self._clock())
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last state as an ordinary line. Further calls do nothing."""
        if not self._enabled:
            return
        if self._live:
            if self._first is not None:
                self._draw(self._clock())
                self._stream.write("\n")
        elif self._unshown:
            self._draw(self._clock())
        self._stream.flush()
        self._enabled = self._live = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self, now: float) -> None:
        self._drawn_at, self._drawn_step, self._unshown = now, self._step, False
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[K" + fit(self._parts(now), width, self._bar))
        else:
            self._stream.write("  ".join(text for _, text in self._parts(now)) + "\n")
        self._stream.flush()

    def _parts(self, now: float) -> list[tuple[int, str]]:
        """(importance, text) from left to right; 0 is the most important."""
        show = self._figures
        parts = [(0, f"step {self._step:,}/{self._total:,}")]
        if "loss" in show:
            parts.append((1, f"loss {show['loss']:.4f}"))
        if "valid_loss" in show:
            parts.append((3, f"valid {show['valid_loss']:.4f}"))
        if "learning_rate" in show:
            parts.append((6, f"lr {show['learning_rate']:.2e}"))
        if "tokens_per_second" in show:
            parts.append((4, f"{short_number(show['tokens_per_second'])} tokens/s"))
        if "peak_share" in show:
            parts.append((5, f"{100 * show['peak_share']:.1f}% of peak"))
        left = self._seconds_left(now)
        if left is not None:
            parts.append((2, f"{duration(left)} left"))
        return parts

    def _seconds_left(self, now: float) -> float | None:
        if self._first is None or self._step <= self._first[0] or self._step >= self._total:
            return None
        first_step, first_time = self._first
        return (now - first_time) / (self._step - first_step) * (self._total - self._step)

    def _bar(self, width: int) -> str:
        return bar(width, self._step / max(1, self._total), self._stream)


def bar(width: int, share: float, stream: TextIO) -> str:
    """So many characters, of which the share that is done is filled; plain ones if the stream has no others."""
    filled = round(width * min(1.0, share))
    unicode = (getattr(stream, "encoding", "") or "").lower().replace("-", "") == "utf8"
    full, empty = ("━", "┄") if unicode else ("#", ".")
    return full * filled + empty * (width - filled)


def fit(parts: list[tuple[int, str]], width: int, bar: Callable[[int], str]) -> str:
    """One line of at most `width` characters: the least important parts go first, a bar fills what is left.

    `parts` are (importance, text) with 0 the most important; the bar comes after the first part.
    """
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    texts = [text for _, text in kept]
    space = min(24, width - len("  ".join(texts)) - 2)
    if space >= 6:
        texts.insert(1, bar(space))
    return "  ".join(texts)[:width]


def short_number(value: float) -> str:
    """Three or four digits and a unit: 950, 12.3k, 4.56M."""
    if not math.isfinite(value):
        return str(value)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """0:42, 12:03, 3:07:59 or 2 d 04:10."""
    whole = int(max(0.0, seconds) + 0.5)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
