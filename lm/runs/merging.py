"""The adapters of a run (model.lora_rank): merged into a run directory of its own, or alone in a file."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from lm.config import Config
from lm.files import new_directory, replacing
from lm.models.lora import adapters, merge
from lm.runs.directory import TOKENIZERS, RunDirectory


@dataclasses.dataclass(frozen=True)
class Trained:
    """The checkpoint of a run with adapters; `params` are the moving average if the run keeps one."""

    directory: RunDirectory
    config: Config
    params: dict[str, Any]
    step: int
    metadata: dict[str, Any]
    metrics: dict[str, float]


def read_trained(directory: RunDirectory, config: Config, step: int | None) -> Trained:
    """Reads a checkpoint, the best without a `step`. Raises UserError if there is none or it is damaged."""
    with directory.open_checkpoints(config) as checkpoints:
        params, found = checkpoints.restore_params(
            step="best" if step is None else step, ema=config.optimizer.ema_decay > 0
        )
        return Trained(directory, config, params, found, checkpoints.metadata(found), checkpoints.metrics(found))


def write_merged(path: Path, trained: Trained) -> None:
    """Writes a run directory, atomically, of the model with its adapters merged. Raises OSError."""
    merged, model = merge(trained.params, trained.config.model)
    config = dataclasses.replace(trained.config, model=model)
    with new_directory(path) as temporary:
        for name in TOKENIZERS:
            if (trained.directory.root / name).is_dir():
                shutil.copytree(trained.directory.root / name, temporary / name)
        made = RunDirectory(temporary)
        with made.open_checkpoints(config, read_only=False) as checkpoints:
            checkpoints.save(trained.step, {"params": jax.device_put(merged)}, trained.metadata, trained.metrics)
        made.write_config(config)


def write_adapters(path: Path, trained: Trained) -> int:
    """Writes the adapters to a safetensors file, atomically, and returns the number of tensors. Raises OSError."""
    tensors = {name: np.ascontiguousarray(value) for name, value in adapters(trained.params).items()}
    metadata = {"config": trained.config.to_json(), "step": str(trained.step)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return len(tensors)
