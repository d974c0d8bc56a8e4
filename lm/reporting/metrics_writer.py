"""Writes the metrics of a run to metrics.jsonl, TensorBoard and, if configured, Weights & Biases."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.errors import UserError
from lm.evaluation.metric import finite_or_none
from lm.files import read_file, storing, write_texts


class MetricsWriter:
    """Appends lines such as `{"step": 1, "train/loss": 2.5}` to the JSON Lines file `metrics_path`.

    Raises UserError if a package is missing or the file cannot be written. When a run resumes from `start_step`, the
    caller must already have removed the lines of later steps from the file. TensorBoard itself ignores the events of
    later steps. Only one process of a run may have a writer.
    """

    def __init__(self, metrics_path: Path, tensorboard_dir: Path, config: Config, start_step: int = 0) -> None:
        self._wandb = _start_wandb(config, metrics_path.parent) if config.log.wandb_project else None
        self._path = metrics_path
        with storing(metrics_path):
            self._file = open(metrics_path, "ab", buffering=0)  # noqa: SIM115
        self._tensorboard = _Events(tensorboard_dir, start_step + 1) if config.log.tensorboard else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step. Infinity and NaN become null in metrics.jsonl and are left out elsewhere."""
        values = {name: finite_or_none(float(value)) for name, value in metrics.items()}
        line = json.dumps({"step": int(step), **values}, allow_nan=False) + "\n"
        with storing(self._path):
            end = self._file.seek(0, os.SEEK_END)
            # A single write leaves no partial line if the run is killed, but may leave one if the disk is full.
            if self._file.write(line.encode()) < len(line.encode()):
                self._file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finite = {name: value for name, value in values.items() if value is not None}
        if self._tensorboard is not None:
            self._tensorboard.write(step, finite)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Events:
    """Writes an event file for TensorBoard, which ignores the events of `first_step` and later steps in older files.

    Raises UserError if the file cannot be written. tensorboardX's own writer would hang on a full disk.
    """

    FLUSH_SECONDS = 30

    def __init__(self, directory: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # an optional package that is slow to import
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory, self._flushed = directory, 0.0
        with storing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file: Any = EventsWriter(str(directory / "events"))
            self._add(first_step, file_version="brain.Event:2")
            self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        with storing(self._directory):
            try:
                for name, value in values.items():
                    self._add(step, summary=scalar(name, value))
                if time.monotonic() - self._flushed > self.FLUSH_SECONDS:
                    self._file.flush()
                    self._flushed = time.monotonic()
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
                raise

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        if self._file is not None:
            with storing(self._directory):
                self._file.close()


class LateMetrics:
    """Leaves the metrics of each step on the device until the next step has been dispatched.

    Reading a metric blocks until the device has finished the step. Meanwhile, the next step keeps the device busy.
    """

    def __init__(self) -> None:
        self._held: tuple[int, Mapping[str, Any]] | None = None

    def push(self, step: int, metrics: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
        """Stores the metrics of the step just dispatched. Returns the previous step and its metrics, or None."""
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        previous, self._held = self.flush(), (step, metrics)
        return previous

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Returns the stored step and its metrics, or None if no metrics are stored."""
        if self._held is None:
            return None
        (step, metrics), self._held = self._held, None
        return step, {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _start_wandb(config: Config, root: Path) -> Any:
    """Starts a Weights & Biases run, or resumes the run whose id is stored in the run directory."""
    project = config.log.wandb_project
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.log.wandb_project={project!r} needs Weights & Biases; run `pip install wandb`, or leave the "
            "setting empty."
        ) from error
    id_path = root / "wandb_run_id"
    if not id_path.exists():
        with storing(id_path):
            write_texts({id_path: secrets.token_hex(8)})
    run_id, settings = read_file(id_path).decode().strip(), config.to_dict()
    return wandb.init(project=project, name=root.name, dir=str(root), id=run_id, resume="allow", config=settings)
