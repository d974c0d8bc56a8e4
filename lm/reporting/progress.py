"""The console of a run and its progress line, which shows the number of steps done, the speed and the time left.

On a terminal, the library `rich` redraws one line in place, and messages appear above it. Elsewhere (a file, a pipe or
a cluster log), plain lines without control characters are printed from time to time. The module never waits for a
device.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TextIO

import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment

REDRAW_SECONDS = 0.1  # minimum interval between updates on a terminal
PLAIN_SECONDS = 10.0  # minimum interval between lines if there is no terminal
LOG_WIDTH = 120  # columns per line if there is no terminal
BAR_WIDTHS = 6, 24  # the minimum and maximum width in columns

Clock = Callable[[], float]  # returns a time in seconds
# The texts of a line from left to right, each with its rank (0 is the most important), and the fraction done.
State = tuple[list[tuple[int, str]], float]
# Maps the metrics that `Progress.update` accepts to their ranks and formats. The order is from left to right.
SHOWN: dict[str, tuple[int, Callable[[float], str]]] = {
    "loss": (1, "loss {:.4f}".format),
    "valid_loss": (3, "valid {:.4f}".format),
    "learning_rate": (6, "lr {:.2e}".format),
    "tokens_per_second": (4, lambda value: f"{short_number(value)} tokens/s"),
    "peak_share": (5, "{:.1%} of peak".format),  # achieved share of the devices' peak FLOP/s
}


def rich_console(stream: TextIO | None = None, *, enabled: bool = True) -> rich.console.Console:
    """Builds a console that prints text unchanged to `stream` or stdout. A disabled console prints nothing."""
    terminal = (stream or sys.stdout).isatty()
    return rich.console.Console(
        file=stream,
        quiet=not enabled,
        force_terminal=terminal,
        width=None if terminal else LOG_WIDTH,
        # Sample text may contain square brackets and :names:, which must not be interpreted.
        markup=False,
        emoji=False,
        highlight=False,
    )


class Progress(AbstractContextManager["Progress"]):
    """A context manager that shows the progress of a run. A quiet console shows nothing."""

    def __init__(
        self, console: rich.console.Console, total_steps: int, start_step: int = 0, clock: Clock = time.monotonic
    ) -> None:
        self._console, self._clock = console, clock
        self._total, self._step = total_steps, start_step
        self._open = not console.quiet
        self._live = _live(self._state, console)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._redraw_seconds = REDRAW_SECONDS if self._is_live else PLAIN_SECONDS
        self._metrics: dict[str, float] = {}
        self._evaluation = ""  # the progress of a running evaluation; "" if none is running
        self._first: tuple[int, float] | None = None  # the step and time from which the speed is measured
        self._drawn_at = -math.inf
        self._undrawn = False  # whether the state has changed since it was last drawn

    def update(self, step: int, **metrics: float | None) -> None:
        """Marks `step` as done and updates the displayed metrics. A metric that is None keeps its old value.

        The time left is estimated from the steps after the first call, so that compilation time is excluded.
        """
        assert metrics.keys() <= SHOWN.keys(), metrics
        self._metrics |= {name: value for name, value in metrics.items() if value is not None}
        self._step, self._evaluation = step, ""
        self._first = self._first or (step, self._clock())
        if self._is_live or metrics.get("loss") is not None:  # without a terminal, only a new loss causes output
            self._changed(at_once=self._is_live and step >= self._total)

    def evaluating(self, done: int, total: int, noun: str = "rows") -> None:
        """Shows until the next `update` that an evaluation has processed `done` of `total` items."""
        self._evaluation = f"evaluated {done:,} of {total:,} {noun}"
        self._changed()

    def message(self, text: str) -> None:
        """Prints text above the progress line."""
        if self._open:
            self._console.print(text.rstrip("\n"), soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        """Ends the progress line, which stays on the screen."""
        if self._undrawn:
            self._draw()
        self._live.stop()
        self._open = False

    def _changed(self, at_once: bool = False) -> None:
        self._undrawn = True
        if at_once or self._clock() - self._drawn_at >= self._redraw_seconds:
            self._draw()

    def _draw(self) -> None:
        if not self._open:
            return
        self._drawn_at, self._undrawn = self._clock(), False
        if self._is_live:
            self._live.start()
            self._live.refresh()
        else:
            parts, _ = self._state()
            self._console.print("  ".join(text for _, text in parts), soft_wrap=True)

    def _state(self) -> State:
        parts = [(0, f"step {self._step:,}/{self._total:,}")]
        if self._evaluation:
            parts.append((1, self._evaluation))
        parts += [(rank, form(self._metrics[name])) for name, (rank, form) in SHOWN.items() if name in self._metrics]
        if self._first is not None and self._first[0] < self._step < self._total:
            first_step, first_time = self._first
            left = (self._clock() - first_time) / (self._step - first_step) * (self._total - self._step)
            parts.append((2, f"{duration(left)} left"))
        return parts, self._step / max(1, self._total)


class Console:
    """Prints text and rich tables above the progress line, if any. If `enabled` is false, nothing is printed."""

    def __init__(self, enabled: bool, stream: TextIO | None = None) -> None:
        self._console = rich_console(stream, enabled=enabled)

    def banner(self, title: str) -> None:
        self.print(f"\n--- {title} ---")

    def print(self, *parts: Any) -> None:
        for part in parts:
            self._console.print(part, soft_wrap=isinstance(part, str))

    def progress(self, total_steps: int, start_step: int = 0) -> Progress:
        return Progress(self._console, total_steps, start_step)


@contextmanager
def counting(
    total: int, noun: str, enabled: bool = True, stream: TextIO | None = None, clock: Clock = time.monotonic
) -> Iterator[Callable[..., None] | None]:
    """Yields a function that takes (number done, total) and updates a progress line, or None without a terminal.

    A call with a new `noun` starts a new count. The line is erased at the end. `stream` defaults to stderr.
    """
    console = rich_console(stream or sys.stderr)
    if not enabled or not total or not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    # `first` holds the number and the time at the first call for the current noun, to exclude compilation time.
    done, first, counted = 0, (0, 0.0), noun

    def state() -> State:
        parts = [(0, f"{done:,} of {total:,} {counted}")]
        if done > first[0]:
            speed = (done - first[0]) / max(clock() - first[1], 1e-9)
            parts += [(2, f"{speed:.1f} {counted}/s"), (1, f"{duration((total - done) / speed)} left")]
        return parts, done / total

    with _live(state, console, transient=True) as live:

        def report(number: int, of: int, noun: str = noun) -> None:
            nonlocal counted, done, total, first
            if noun != counted:
                counted, first = noun, (0, 0.0)
            done, total, first = number, of, first if first[0] else (number, clock())
            live.refresh()

        yield report


def _live(state: Callable[[], State], console: rich.console.Console, transient: bool = False) -> Live:
    """Returns a live display of a state, which is redrawn on request and whenever the console prints text."""
    options: Any = {"auto_refresh": False, "redirect_stdout": False, "redirect_stderr": False}
    return Live(Line(state), console=console, transient=transient, **options)


class Line:
    """A rich renderable for a progress line: the state's texts, with a bar after the first text.

    On a narrow terminal, the least important texts are left out.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        parts, share = self._state()
        width, kept = options.max_width - 1, list(parts)
        while len(text := "  ".join(each for _, each in kept)) > width and len(kept) > 1:
            kept.remove(max(kept))
        narrowest, widest = BAR_WIDTHS
        space = min(widest, width - len(text) - 2)
        if space < narrowest:
            yield Segment(text[:width])
            return
        _, first = kept[0]
        yield Segment(f"{first}  ")
        yield from ProgressBar(total=1.0, completed=min(1.0, share), width=space).__rich_console__(console, options)
        yield Segment(text.removeprefix(first))


def short_number(value: float) -> str:
    """Formats a number with at most three significant digits and a suffix: 950, 12.3k, 4.56M."""
    if not math.isfinite(value):
        return str(value)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Formats a duration as 0:42, 12:03, 3:07:59 or 2 d 04:10."""
    minutes, second = divmod(int(max(0.0, seconds) + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
