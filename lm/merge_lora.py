"""Merges the adapters of a run into its projections (model.lora_rank), or writes the adapters alone.

python -m lm.merge_lora --workdir=runs/tuned --output=runs/merged
python -m lm.merge_lora --workdir=runs/tuned --adapters=tuned.safetensors

--output becomes a run directory, whole or not at all, that eval.py, lm.generate and config.init_from can open: the
config with lora_rank=0, the tokenizer, and one checkpoint with the parameters (their moving average, if the run keeps
one). It holds no optimizer state, so the run cannot be continued. --adapters gets the tensors of the adapters under the
names of their parameters, and the config and the step as metadata; it does not hold the head, which was trained too.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from lm.config.command import DONE, run
from lm.errors import UserError
from lm.files import writing_flag
from lm.runs.directory import RunDirectory
from lm.runs.merging import read_trained, write_adapters, write_merged

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Run directory of the model with adapters.")
    flags.DEFINE_string("output", None, "Run directory to create for the merged model.")
    flags.DEFINE_string("adapters", None, "File to write the adapters alone to, NAME.safetensors.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; by default the best.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; name the run directory of a model with adapters.")
    if FLAGS.output is None and FLAGS.adapters is None:
        raise UserError("name the run directory to create with --output, or a file with --adapters.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if config.model.lora_rank == 0:
        raise UserError(f"--workdir={FLAGS.workdir}: this run has no adapters (config.model.lora_rank is 0).")
    for flag in ("output", "adapters"):
        path = FLAGS[flag].value
        if path is not None and os.path.lexists(path):
            raise UserError(f"--{flag}={path}: exists already; name a new one.")
    trained = read_trained(directory, config, FLAGS.step)
    if FLAGS.adapters is not None:
        with writing_flag("adapters", FLAGS.adapters):
            count = write_adapters(Path(FLAGS.adapters), trained)
        print(f"written: {FLAGS.adapters}, {count} tensors of adapters, step {trained.step:,}")
    if FLAGS.output is not None:
        with writing_flag("output", FLAGS.output):
            write_merged(Path(FLAGS.output), trained)
        print(f"written: {FLAGS.output}, step {trained.step:,} with its adapters merged")
    return DONE


if __name__ == "__main__":
    define_flags()
    run(main)
