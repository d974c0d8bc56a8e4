"""Runs several processes as one program: start-up with a time limit, and barriers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

from lm.errors import UserError
from lm.parallel.roll_call import Expected, call_roll


def define_flags() -> None:
    flags.DEFINE_string("coordinator", "", "To run several processes: HOST:PORT of process 0.")
    flags.DEFINE_integer("num_processes", 1, "With --coordinator: number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", 0, "With --coordinator: index of this process, from 0.")
    flags.DEFINE_integer("startup_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)


def initialize_from_flags() -> None:
    """Calls `initialize` with the values of the flags."""
    values = flags.FLAGS
    initialize(values.coordinator, values.num_processes, values.process_id, values.startup_timeout)


def initialize(coordinator: str, num_processes: int, process_id: int, timeout_seconds: int) -> None:
    """Joins the other processes, if there are any; must run before JAX touches a device.

    With a `coordinator` (host:port of process 0), the values are used as given. Without one, Slurm jobs of several
    tasks and multi-host Cloud TPUs are detected from the environment; otherwise, this is the only process. Raises
    UserError if the others do not join within `timeout_seconds`.
    """
    values: dict[str, Any] = {}
    if coordinator:
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id}: must be in 0..{num_processes - 1} (--num_processes).")
        call_roll(Expected(coordinator, num_processes, process_id), timeout_seconds)
        values = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    else:
        slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
        if not slurm and "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
            if num_processes > 1:
                raise UserError(f"--num_processes={num_processes}: also needs --coordinator=HOST:PORT of process 0.")
            return
    try:
        with _time_limit(timeout_seconds):
            jax.distributed.initialize(**values, initialization_timeout=timeout_seconds + 60)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"this process could not join the others: {reason}") from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends this process with a one-line error when time is up, before JAX aborts it with a stack trace."""

    def give_up() -> None:
        advice = "check that all were started and can reach each other."
        print(f"error: not all processes joined within {seconds} s; {advice}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits within JAX, where no exception can reach it

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
