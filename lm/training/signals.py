"""SIGTERM and Ctrl-C request a stop after the current step, when the state is complete and can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

STDERR = 2  # file descriptor


class StopRequest:
    """A context manager that remembers the first signal; a second Ctrl-C interrupts immediately.

    With several processes, a SIGTERM to one of them makes all of them agree on the step after which they stop. JAX
    handles that signal itself, so its handler must not be replaced; Ctrl-C is passed on as a SIGTERM.
    """

    def __init__(self) -> None:
        self._name = ""

    def at(self, step: int) -> str:
        """Returns the signal's name if the run must stop after `step`, else ''; all processes get the same answer."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else ""
        return self._name

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGTERM, signal.SIGINT]
        self._before: dict[int, Any] = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        # Not print, because the signal may interrupt another print; not sys.stderr, which is replaced during a save.
        os.write(STDERR, f"\n{self._name}: saving after this step, then stopping.\n".encode())
