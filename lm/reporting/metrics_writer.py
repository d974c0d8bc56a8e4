"""Writes the metrics of a run to metrics.jsonl, TensorBoard and, if configured, Weights & Biases."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.errors import UserError
from lm.evaluation.metric import finite_or_none


class MetricsWriter:
    """Appends one JSON object per line to `metrics_path`: `{"step": ..., "train/loss": ..., ...}`.

    Raises UserError if a package is missing or the file cannot be written. When a run resumes from `start_step`, the
    caller has already removed later lines from metrics.jsonl, and TensorBoard drops its later events. Only one process
    of a run has a writer.
    """

    def __init__(self, metrics_path: Path, tensorboard_dir: Path, config: Config, start_step: int = 0) -> None:
        self._tensorboard: Any = None
        self._wandb = _start_wandb(config, metrics_path.parent) if config.log.wandb_project else None
        try:
            # Flushed after each line, so that a killed run leaves only complete lines.
            self._file = open(metrics_path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{metrics_path}: cannot be written ({error.strerror}).") from error
        if config.log.tensorboard:
            from tensorboardX import SummaryWriter  # slow to import, and optional

            self._tensorboard = SummaryWriter(str(tensorboard_dir), purge_step=start_step + 1, flush_secs=30)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line for `step`. Values that are not finite are null in the JSON and left out elsewhere."""
        values = {name: finite_or_none(float(value)) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": int(step), **values}, allow_nan=False) + "\n")
        self._file.flush()
        finite = {name: value for name, value in values.items() if value is not None}
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class LateMetrics:
    """Holds the metrics of step n - 1 on the device until step n has been dispatched.

    Reading a metric waits for the step that computes it. One step later, the device is already computing the
    next one, so waiting costs nothing.
    """

    def __init__(self) -> None:
        self._held: tuple[int, Mapping[str, Any]] | None = None

    def push(self, step: int, metrics: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
        """Stores the device scalars of the `step` just dispatched; returns the previous step and its metrics."""
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        previous, self._held = self.flush(), (step, metrics)
        return previous

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Returns the last step that was pushed and its metrics, or None if nothing is left to read."""
        if self._held is None:
            return None
        (step, metrics), self._held = self._held, None
        return step, {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}


def _start_wandb(config: Config, root: Path) -> Any:
    """Starts a Weights & Biases run, or resumes the one whose id is in the run directory."""
    project = config.log.wandb_project
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.log.wandb_project={project!r} needs Weights & Biases; run pip install wandb, or leave this empty."
        ) from error
    id_path = root / "wandb_run_id"
    if not id_path.exists():
        id_path.write_text(secrets.token_hex(8))
    return wandb.init(
        project=project,
        name=root.name,
        dir=str(root),
        id=id_path.read_text().strip(),
        resume="allow",
        config=config.to_dict(),
    )
