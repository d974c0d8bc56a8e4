"""Connects several processes to form one program, within a time limit, and provides barriers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from lm.errors import USER_ERROR, UserError, as_user_error
from lm.parallel.peers import Peers
from lm.parallel.roll_call import Expected, call_roll
from lm.parallel.signals import end_process, state

SECONDS_UNTIL_NOTICED = 5.0  # time from the death of a process to the end of all others


def initialize_from_flags() -> None:
    """Connects to the other processes, using the flags that `lm.config.command.define_process_flags` defines."""
    values = flags.FLAGS
    initialize(values.coordinator, values.num_processes, values.process_id, values.startup_timeout)


def together(main: Callable[[], int]) -> Callable[[], int]:
    """Wraps the main function of a command so that a failure in one process ends all processes."""

    def wrapped() -> int:
        with failing_together():
            status = main()
        if isinstance(others := state.others, Peers):
            others.finish()
        sys.stdout.flush()
        state.status = status
        return status

    return wrapped


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes with status 1 if the block raises an error. Every process prints which one failed.

    Otherwise, the other processes would wait for this process. Use this context manager inside any block that waits for
    the other processes on exit.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(others := state.others, Peers):
            raise
        explained = as_user_error(error)
        reason = " ".join(str(explained).split())
        if explained is None:
            # If another process dies, operations also fail in this process, which is not at fault.
            time.sleep(SECONDS_UNTIL_NOTICED)
            traceback.print_exc()
            reason = f"{type(error).__name__}: {reason[:200]}"
        end_process(USER_ERROR, f"error: {others.name}: {reason}", reason)


def initialize(coordinator: str, num_processes: int, process_id: int, timeout_seconds: int) -> None:
    """Connects to the other processes, if there are any. Must be called before JAX uses a device.

    If `coordinator` (host:port of process 0) is not given, Slurm jobs with several tasks and multi-host Cloud TPUs are
    detected from the environment; anywhere else, this process runs alone. Raises UserError if the other processes do
    not join in time.
    """
    values: dict[str, Any] = {}
    bind_address = ""
    if coordinator:
        if not 0 <= process_id < num_processes:
            limit = f"with --num_processes={num_processes}, it must be from 0 to {num_processes - 1}"
            raise UserError(f"--process_id={process_id} is out of range; {limit}.")
        expected = Expected(coordinator, num_processes, process_id)
        call_roll(expected, timeout_seconds)
        values = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        if process_id == 0 and (bind_address := expected.bind_address):
            shown = f"[{bind_address}]" if ":" in bind_address else bind_address
            values["coordinator_bind_address"] = f"{shown}:{expected.address[1]}"
    elif not _is_on_slurm() and "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        if num_processes > 1:
            needed = "--coordinator=HOST:PORT, the address of process 0"
            raise UserError(f"--num_processes={num_processes} also needs {needed}.")
        return
    # JAX's preemption service would replace our SIGTERM handler with its own.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(timeout_seconds, _give_up, [timeout_seconds])  # JAX would later abort with a stack trace
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**values, initialization_timeout=timeout_seconds + 60)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"this process could not join the others: {reason}") from error
    finally:
        timer.cancel()
    host = str(global_state.coordinator_address).rpartition(":")[0].strip("[]")
    index, count = global_state.process_id, global_state.num_processes
    Peers(global_state.client, index, count, host, bind_address).start()


def _is_on_slurm() -> bool:
    value = os.environ.get("SLURM_NTASKS", "1")
    if not value.isascii() or not value.isdigit():
        raise UserError(f"SLURM_NTASKS={value} is not a number; unset it to run a single process.")
    return int(value) > 1 and "SLURM_PROCID" in os.environ


def _give_up(seconds: float) -> None:
    advice = "check that all processes were started and can reach each other."
    print(f"error: not all processes joined within {seconds} s; {advice}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread is waiting inside JAX, where no exception can reach it


def is_first() -> bool:
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed_on(value: float) -> float:
    """Returns the first process's value in all processes, which must call this function together."""
    return float(multihost_utils.broadcast_one_to_all(np.float64(value))) if jax.process_count() > 1 else value
