"""Merges the LoRA adapters of a run into its linear layers, or exports the adapters alone.

python -m lm.merge_lora --workdir=runs/tuned --output=runs/merged
python -m lm.merge_lora --workdir=runs/tuned --adapters=tuned.safetensors

--output names a run directory to create, which eval.py, lm.generate and config.init_from can use. The new directory
holds the config with lora_rank=0, the tokenizer, and one checkpoint of the parameters. If the run keeps a moving
average of the parameters, the checkpoint contains this average. The checkpoint has no optimizer state, so the run
cannot be continued. --adapters names a file to create, which holds the adapter tensors, keyed by parameter name, and
the config and the step as metadata. The file does not include the head, although the head was trained as well.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from absl import flags
from safetensors.numpy import save

from lm.config.command import DONE, define_path, run
from lm.errors import UserError
from lm.files import new_directory, remove_leftovers, replacing, writing_flag
from lm.models.parameters import adapters, merge_adapters
from lm.runs.directory import TOKENIZERS, RunDirectory
from lm.runs.fingerprint import recorded_settings
from lm.runs.prepare import load_tokenizers

FLAGS = flags.FLAGS


def define_flags() -> None:
    define_path("workdir", "Run directory of a model with adapters.")
    define_path("output", "Run directory to create for the merged model.")
    define_path("adapters", "File NAME.safetensors to create, which holds only the adapters.")
    flags.DEFINE_integer("step", None, "Checkpoint step to use. By default, the best step is used.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; specify the run directory of a model with adapters.")
    if FLAGS.output is None and FLAGS.adapters is None:
        raise UserError("specify the run directory to create (--output) or the file to write (--adapters).")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if config.model.lora_rank == 0:
        raise UserError(f"--workdir={FLAGS.workdir}: this run has no adapters (config.model.lora_rank is 0).")
    load_tokenizers(config, directory.root)  # raises UserError if one is damaged
    for flag in ("output", "adapters"):
        path = FLAGS[flag].value
        if path is not None and os.path.lexists(path):
            raise UserError(f"--{flag}={path} already exists; choose a new name.")
    with directory.open_checkpoints(config) as checkpoints:
        ema = config.optimizer.ema_decay > 0
        params, step = checkpoints.restore_params(step="best" if FLAGS.step is None else FLAGS.step, ema=ema)
        record = checkpoints.record(step)
    if FLAGS.adapters is not None:
        tensors = {name: np.ascontiguousarray(value) for name, value in adapters(params).items()}
        with writing_flag("adapters", FLAGS.adapters), replacing(Path(FLAGS.adapters)) as temporary:
            temporary.write_bytes(save(tensors, metadata={"config": config.to_json(), "step": str(step)}))
        print(f"written: {FLAGS.adapters}, {len(tensors)} adapter tensors, step {step:,}")
    if FLAGS.output is not None:
        merged, model = merge_adapters(params, config.model)
        config = dataclasses.replace(config, model=model)
        metadata = record["metadata"] | {"config": recorded_settings(config)}
        with writing_flag("output", FLAGS.output):
            remove_leftovers(Path(FLAGS.output).parent, Path(FLAGS.output).name)
        with writing_flag("output", FLAGS.output), new_directory(Path(FLAGS.output)) as temporary:
            for name in TOKENIZERS:
                if (directory.root / name).is_dir():
                    shutil.copytree(directory.root / name, temporary / name)
            made = RunDirectory(temporary)
            if directory.train_hashes_path.exists():
                made.train_hashes_path.parent.mkdir()
                shutil.copy(directory.train_hashes_path, made.train_hashes_path)
            with made.open_checkpoints(config, read_only=False) as checkpoints:
                checkpoints.save(step, {"params": jax.device_put(merged)}, metadata, record["metrics"])
            made.write_config(config)
        print(f"written: {FLAGS.output}, step {step:,} with its adapters merged")
    return DONE


if __name__ == "__main__":
    define_flags()
    run(main)
