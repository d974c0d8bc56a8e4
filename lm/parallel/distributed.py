"""Several processes as one program: start-up with a time limit, and process 0 first."""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.experimental import multihost_utils

from lm.errors import UserError


def initialize(coordinator: str, num_processes: int, process_id: int, timeout_seconds: int) -> None:
    """Joins the other processes, if there are any; must run before JAX touches a device.

    With a `coordinator` (host:port of process 0) the three values are used as given. Without one, a
    Slurm job of several tasks and a multi-host Cloud TPU are recognised by JAX from their environment;
    everything else is a single process. Raises UserError after `timeout_seconds` with no answer.
    """
    if coordinator:
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id}: must be in 0..{num_processes - 1} (--num_processes).")
        values: dict[str, Any] = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    elif _in_cluster():
        values = {}
    else:
        return
    try:
        jax.distributed.initialize(**values, initialization_timeout=timeout_seconds)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        who = f"process {process_id} of {num_processes} at {coordinator}" if coordinator else "this process"
        raise UserError(
            f"{who} could not join the others within {timeout_seconds} s: check that every process was started "
            f"with the same coordinator and that its port can be reached ({reason})"
        ) from error


def describe_processes() -> list[tuple[int, str, int]]:
    """(process, kind of device, local devices) of every process there is."""
    rows: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        rows.setdefault(device.process_index, []).append(device)
    return [(process, devices[0].device_kind, len(devices)) for process, devices in sorted(rows.items())]


def is_first() -> bool:
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def preempted(step: int) -> bool:
    """Whether the processes have agreed to stop at this step after one of them got SIGTERM."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _in_cluster() -> bool:
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    tpu = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    return slurm or tpu
