"""Takes the adapters of a run up into its products (model.lora_rank), or writes the adapters alone.

python -m lm.merge_lora --workdir=runs/tuned --output=runs/merged
python -m lm.merge_lora --workdir=runs/tuned --adapters=tuned.safetensors

--output becomes a run directory, whole or not at all, that eval.py, lm.generate and config.init_from can open: the
config with lora_rank=0, the tokenizer, and one checkpoint with the parameters (their moving average, if the run keeps
one). It holds no optimizer state, so that it is no run to be continued. --adapters gets the tensors of the adapters
under the names of their parameters, and in its metadata the config and the step; the head, which was trained with
them, is not among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from safetensors.numpy import save_file

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.command import DONE, run
from lm.errors import UserError
from lm.models.transformer.lora import adapters, merge
from lm.runs.directory import TOKENIZERS, RunDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the model with adapters.")
    flags.DEFINE_string("output", None, "Run directory to make, of the merged model.")
    flags.DEFINE_string("adapters", None, "File to write, NAME.safetensors, with the adapters alone.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the best if not given.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of a model with adapters.")
    if FLAGS.output is None and FLAGS.adapters is None:
        raise UserError("name the run directory to make with --output, or a file with --adapters.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if config.model.lora_rank == 0:
        raise UserError(f"--workdir={FLAGS.workdir}: this run has no adapters (config.model.lora_rank is 0).")
    for flag in ("output", "adapters"):
        path = FLAGS[flag].value
        if path is not None and os.path.lexists(path):
            raise UserError(f"--{flag}={path}: is there already; name a new one.")
    with Checkpoints(directory.checkpoints_dir, config.checkpoint, read_only=True) as checkpoints:
        params, step = checkpoints.restore_params(
            step="best" if FLAGS.step is None else FLAGS.step, ema=config.optimizer.ema_decay > 0
        )
        metadata, metrics = checkpoints.metadata(step), checkpoints.metrics(step)
    if FLAGS.adapters is not None:
        write_adapters(Path(FLAGS.adapters), params, config, step)
    if FLAGS.output is not None:
        with _new(Path(FLAGS.output), "output") as temporary:
            merged, model = merge(params, config.model)
            config = dataclasses.replace(config, model=model)
            temporary.mkdir(parents=True)
            for name in TOKENIZERS:
                if (directory.root / name).is_dir():
                    shutil.copytree(directory.root / name, temporary / name)
            made = RunDirectory(temporary)
            with Checkpoints(made.checkpoints_dir, config.checkpoint) as checkpoints:
                checkpoints.save(step, {"params": jax.device_put(merged)}, metadata, metrics)
            made.write_config(config)
        print(f"written: {FLAGS.output}, step {step:,} with its adapters merged")
    return DONE


def write_adapters(path: Path, params: dict[str, Any], config: Config, step: int) -> None:
    tensors = {name: np.ascontiguousarray(value) for name, value in adapters(params).items()}
    with _new(path, "adapters") as temporary:
        save_file(tensors, temporary, metadata={"config": config.to_json(), "step": str(step)})
    print(f"written: {path}, {len(tensors)} tensors of adapters, step {step:,}")


@contextlib.contextmanager
def _new(path: Path, flag: str) -> Iterator[Path]:
    """A temporary path that becomes `path` at the end; if anything fails nothing is left. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.rename(temporary, path)
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is there no longer, or never was
            temporary.unlink()


if __name__ == "__main__":
    define_flags()
    run(main)
