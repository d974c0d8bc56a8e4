"""Trains a model, or continues a run that was stopped.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python train.py --config=configs/shakespeare_char_cpu.py:input.txt --workdir=runs/char --config.train.num_steps=500

Exit status: 0 done (or done before), 1 an error that you can mend, 75 saved on a signal: run it again.
"""

from pathlib import Path

import jax
from absl import flags

from lm import command
from lm.data.prepare import cache_directory
from lm.errors import UserError
from lm.parallel import distributed
from lm.training.loop import train

command.define_config_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run directory: everything that the run writes, and its checkpoints."
)
COORDINATOR = flags.DEFINE_string("coordinator", "", "With several processes: host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "With --coordinator: how many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", 0, "With --coordinator: which of them this is, from 0.")
STARTUP_TIMEOUT = flags.DEFINE_integer("startup_timeout", 300, "Seconds to wait for the other processes.")


def main() -> int:
    config = command.config_from_flags()
    if config is None:
        raise UserError("--config is missing; for a first run: --config=configs/quickstart.py.")
    if not WORKDIR.value:
        raise UserError("--workdir is missing; name a directory for this run, as --workdir=runs/quickstart.")
    distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, STARTUP_TIMEOUT.value)
    jax.config.update("jax_compilation_cache_dir", str(cache_directory(config) / "xla"))
    return train(config, Path(WORKDIR.value))


if __name__ == "__main__":
    command.run(main)
