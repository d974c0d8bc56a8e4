"""Compiles the training step for chips that this machine does not have, and prints what it needs.

    python -m lm.aot --config=configs/NAME.py --topology=v5e:8x8 [--config.mesh.fsdp=64 ...]

TPU topologies are named like v4:2x2x4, v5e:8x8, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1 (`pip install -r requirements-tpu.txt`,
on any Linux machine). `--num_slices=2` joins two of them over the data-centre network. For NVIDIA GPUs the topology is
cuda:HOSTSxGPUS, e.g. cuda:2x8, with --gpu_target=FILE, XLA's text description of the chip
(xla/backends/gpu/target_config/specs/*.txtpb), and `pip install -r requirements-cuda.txt`. No data is read: the config
must set model.vocab_size. Exit status 0 if the step fits in the chip's memory, 1 if not.
"""

from __future__ import annotations

import jax
from absl import flags

from lm.config import command
from lm.errors import UserError
from lm.parallel.topologies import absent_devices
from lm.training.compiled_cost import compile_for, table


def main() -> int:
    config = command.config_from_flags()
    if config is None or not flags.FLAGS.topology:
        raise UserError("give --config=configs/NAME.py and --topology=NAME, e.g. v5e:8x8 (see --help).")
    jax.config.update("jax_platforms", "cpu")  # this machine's own devices are not wanted
    devices, platform = absent_devices(flags.FLAGS.topology, flags.FLAGS.num_slices, flags.FLAGS.gpu_target)
    report = compile_for(config, devices, platform)
    print(table(report))
    return command.USER_ERROR if report.fits is False else command.DONE


if __name__ == "__main__":
    command.define_config_flag()
    flags.DEFINE_string("topology", "", "Chips to compile for: v5e:8x8, v5p:4x4x4, ..., or cuda:1x8.")
    flags.DEFINE_integer("num_slices", 1, "Number of TPU slices of that shape.", lower_bound=1)
    flags.DEFINE_string("gpu_target", "", "For cuda: file with XLA's description of the chip.")
    command.run(main)
