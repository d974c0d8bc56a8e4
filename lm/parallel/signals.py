"""Handles SIGTERM and Ctrl-C: the process ends with status 75, at once or, while training, after the current step.

This module imports no slow modules, because train.py and eval.py call `catch` before their other imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

from lm.errors import SAVED_ON_SIGNAL, USER_ERROR
from lm.files import remove_temporaries

NUMBERS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2  # file descriptor
# Signals closer together than this count as one, because `timeout` and some launchers send each signal twice.
SECONDS_APART = 0.25
SECONDS_TO_END = 3.0  # time limit for the last output and clean-up of a process that ends at once
SHOW_CURSOR = "\x1b[?25h"  # the progress line hides the cursor


class Others:
    """Represents the other processes of the program.

    If there are other processes, `lm.parallel.peers` replaces this object.
    """

    def stop(self, name: str) -> None:
        """Agrees with the other processes on the step after which all stop. Passes this step to the loop."""
        if state.loop is not None:
            state.loop.stop_after(0)

    def end(self, status: int, reason: str) -> None:
        """Ends the other processes with this status. Each process prints the reason."""


class _State:
    loop: StopRequest | None = None  # the training loop's request, while the loop is running
    status: int | None = None  # exit status of the command, once it is complete
    others = Others()
    withdraw: Callable[[], None] | None = None  # removes the files of a run that has not taken its first step
    last_signal, signals = -SECONDS_APART, 0  # time of the last signal, and number of signals
    wakeup: int | None = None  # file descriptor to which Python writes the number of each signal


state = _State()
_ending = threading.Lock()  # held by the thread that ends the process


def catch() -> None:
    """Makes SIGTERM and Ctrl-C end the process with status 75 at any time (but see `StopRequest`).

    A thread handles the signals, since the main thread may be inside a library for minutes, e.g. while compiling.
    """
    if state.wakeup is None:
        reader, state.wakeup = os.pipe()
        os.set_blocking(state.wakeup, False)
        threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_release)
    state.status = None
    signal.set_wakeup_fd(state.wakeup, warn_on_full_buffer=False)
    for number in NUMBERS:
        signal.signal(number, _handled_in_thread)


class StopRequest:
    """A context manager within which the first signal only asks the training loop to stop after its current step.

    If there are several processes, all of them agree on the step after which they stop.
    """

    def __init__(self, step: int = 0) -> None:
        self._changed = threading.Condition()
        self.name = ""  # name of the signal, or "" if the loop need not stop
        self._step = step  # the last step for which `at` was called
        self._last = -1  # the last step to take; -1 while it is unknown

    def at(self, step: int) -> str:
        """Returns the signal's name if the run must stop after `step`, else ''. All processes get the same answer."""
        with self._changed:
            self._step = step
            self._changed.wait_for(lambda: not self.name or self._last >= 0)  # until the last step is agreed on
            return self.name if self.name and step >= self._last else ""

    def request(self, name: str) -> int:
        """Asks the loop to stop, and returns its current step. From then on, `at` waits for `stop_after`."""
        with self._changed:
            self.name = self.name or name
            return self._step

    def stop_after(self, step: int) -> None:
        with self._changed:
            self._last = step
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._handlers = {number: signal.getsignal(number) for number in NUMBERS}
        state.loop, state.signals, state.last_signal = self, 0, -SECONDS_APART
        catch()
        return self

    def __exit__(self, *_: object) -> None:
        state.loop = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def end_process(status: int, line: str, reason: str = "") -> NoReturn:
    """Prints a line to stderr and ends this process at once, from any thread. No file is left half-written.

    If `reason` is given, the other processes print it and end with the same status.
    """
    _ending.acquire()

    def last_words() -> None:  # in a thread of its own, because any of these calls may block
        write_line(line)
        if reason:
            state.others.end(status, reason)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        remove_temporaries()
        if status == USER_ERROR and state.withdraw is not None:
            state.withdraw()

    thread = threading.Thread(target=last_words, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_END)
    os._exit(status)


def write_line(text: str) -> None:
    """Writes to file descriptor 2 directly, since a print may be in progress and sys.stderr may be redirected."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"{SHOW_CURSOR if os.isatty(STDERR) else ''}{text}\n".encode())


def _handled_in_thread(number: int, frame: FrameType | None) -> None:
    """Does nothing in the main thread, because `_watch` has already been woken up."""


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in NUMBERS and signal.getsignal(number) is _handled_in_thread:
                _take(signal.Signals(number).name)


def _take(name: str) -> None:
    now = time.monotonic()
    if now - state.last_signal < SECONDS_APART:
        return
    state.last_signal, state.signals = now, state.signals + 1
    loop = state.loop
    if state.status is not None:
        os._exit(state.status)
    if loop is None or state.signals > 1:
        line = f"stopped by {name}; run the same command again."
        end_process(SAVED_ON_SIGNAL, line, reason=line)
    loop.request(name)
    write_line(f"\n{name}: saving after this step, then stopping.")
    state.others.stop(name)


def _release() -> None:
    """Restores the default handlers in a forked process, which must not write to its parent's pipe."""
    if signal.getsignal(signal.SIGTERM) is _handled_in_thread:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
