"""SIGTERM and Ctrl-C ask for a stop at the next step, where the state is whole and can be saved."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

import jax

from lm.parallel import distributed

STDERR = 2  # the descriptor


class StopRequest:
    """Inside the `with`, the first signal is remembered; a second Ctrl-C interrupts at once.

    With several processes SIGTERM to one of them makes all agree on a step to stop at: JAX listens
    for the signal itself, so no handler of ours may take its place. Ctrl-C is passed on as a SIGTERM.
    """

    def __init__(self) -> None:
        self._name = ""
        self._before: dict[int, Any] = {}

    def at(self, step: int) -> str:
        """The name of the signal if the run is to stop after `step`, else ''. All processes get the same."""
        if jax.process_count() > 1:
            return "SIGTERM" if distributed.preempted(step) else ""
        return self._name

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        # Not print: the signal may have come in the middle of one. Nor sys.stderr, which is replaced during a save.
        os.write(STDERR, f"\n{self._name}: saving after this step, then stopping.\n".encode())
