"""Trains a model, or continues an interrupted run.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python train.py --config=configs/shakespeare_char_cpu.py:input.txt --workdir=runs/char --config.train.num_steps=500
    python train.py --config=configs/classify_mr.py:DIR --workdir=runs/mr --seeds=0,1,2      trains three runs

The exit status is 0 if the run is complete, 1 after an error that you can fix, and 75 after a signal. After a signal,
run the same command again.
"""

from lm.parallel import signals
from lm.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()
    signals.catch()  # before the other imports, which take seconds

import os
from pathlib import Path

from absl import flags

from lm.config import command
from lm.config.command import LONGEST_NUMBER
from lm.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    command.define_config_flag()
    command.define_path("workdir", "Run directory for checkpoints, metrics and all other files of the run.")
    flags.DEFINE_list(
        "seeds", [], "Train once with each of these seeds, in subdirectories of --workdir, and print one table."
    )
    flags.DEFINE_integer("folds", 0, "Train once for each of the first N folds of data.folds, and print one table.")
    command.define_process_flags()


def main() -> int:
    # Importing JAX takes seconds, so --help and flag errors are handled before the imports below.
    from lm.parallel.distributed import together

    return together(train_from_flags)()


def train_from_flags() -> int:
    from lm.parallel import distributed
    from lm.runs.compile_cache import use_compile_cache
    from lm.runs.prepare import cache_directory
    from lm.runs.repeats import repetitions, train_all
    from lm.training.loop import train

    config = command.config_from_flags()
    if config is None:
        raise UserError("--config is missing; for a first run, use --config=configs/quickstart.py.")
    if not FLAGS.workdir:
        raise UserError("--workdir is missing; specify a directory for this run, e.g. --workdir=runs/quickstart.")
    distributed.initialize_from_flags()
    use_compile_cache(config)
    # By default, Matplotlib would write to the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_directory(config) / "matplotlib"))
    for text in FLAGS.seeds:
        if not text.isdecimal() or len(text) > LONGEST_NUMBER:
            raise UserError(f"--seeds: {text!r} is not a number; separate numbers with commas, e.g. --seeds=0,1,2.")
    if FLAGS.seeds or FLAGS.folds:
        return train_all(repetitions(config, [int(each) for each in FLAGS.seeds], FLAGS.folds), Path(FLAGS.workdir))
    return train(config, Path(FLAGS.workdir))


if __name__ == "__main__":
    define_flags()
    command.run(main, outlives_output=True)
