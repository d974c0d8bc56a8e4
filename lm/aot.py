"""Compiles the training step for chips that this machine does not have, and prints how much memory and compute the
step needs.

    python -m lm.aot --config=configs/NAME.py --topology=v5e:8x8 [--config.mesh.fsdp=64 ...]

TPU topologies have names such as v4:2x2x4, v5e:8x8, v5p:4x4x4, v6e:4x4 and tpu7x:2x2x1. To compile for a TPU, first run
`pip install -r requirements-tpu.txt`. Compiling for a TPU works on any Linux machine. `--num_slices=2` compiles for two
slices that are connected by the data-centre network. A topology of NVIDIA GPUs has the form cuda:HOSTSxGPUS, e.g.
cuda:2x8. To compile for a GPU, first run `pip install -r requirements-cuda.txt`, then pass --gpu_target=h100 (or a100,
h200), or the path of XLA's text description of another chip (xla/backends/gpu/target_config/specs/*.txtpb). No data is
read, so the config must set model.vocab_size. The exit status is 1 if the step does not fit in the memory of the chip,
and 0 otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies

from lm.config import command
from lm.errors import UserError
from lm.training.compiled_cost import compile_for, table
from lm.training.gpu_targets import GPU_TARGETS


def main() -> int:
    config = command.config_from_flags()
    if config is None or not flags.FLAGS.topology:
        raise UserError("give --config=configs/NAME.py and --topology=NAME, e.g. v5e:8x8 (see --help).")
    jax.config.update("jax_platforms", "cpu")  # the devices on this machine are not needed
    devices, platform = absent_devices(flags.FLAGS.topology, flags.FLAGS.num_slices, flags.FLAGS.gpu_target)
    report = compile_for(config, devices, platform)
    print(table(report))
    return command.USER_ERROR if report.fits is False else command.DONE


def absent_devices(topology: str, num_slices: int = 1, gpu_target: str = "") -> tuple[list[Any], str]:
    """Returns the devices and platform of a topology.

    Raises UserError if the compiler is missing or rejects the topology.
    """
    family, _, shape = topology.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(f"--topology must have the form v5e:8x8 (TPU) or cuda:1x8 (hosts x GPUs), not {topology}.")
    options: dict[str, Any]
    if family == "cuda":
        platform, options = "cuda", _cuda_options(topology, shape, gpu_target)
        # Autotuning would time candidate kernels on a real GPU.
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"--topology={topology} needs libtpu; run `pip install -r requirements-tpu.txt`.")
        # Without these variables, libtpu queries a metadata server that exists only on Google Cloud.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-64")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        # Several processes may compile at the same time, because none of them uses a TPU.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
        platform = "tpu"
        options = {"topology_name": topology} | ({"num_slices": num_slices} if num_slices > 1 else {})
    try:
        description = topologies.get_topology_desc(platform=platform, **options)
    except Exception as error:  # the type of the error depends on the plug-in
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={topology}: the {platform} compiler rejects this topology ({reason}).") from error
    return list(description.devices), {"cuda": "gpu"}.get(platform, platform)


def _cuda_options(topology: str, shape: str, gpu_target: str) -> dict[str, Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(f"--topology={topology} needs JAX's CUDA plug-in; run `pip install -r requirements-cuda.txt`.")
    if shape.count("x") != 1:
        raise UserError(f"--topology must have the form cuda:HOSTSxGPUS, e.g. cuda:1x8, not {topology}.")
    if gpu_target in GPU_TARGETS:
        text = GPU_TARGETS[gpu_target].text()
    elif Path(gpu_target).is_file():
        text = Path(gpu_target).read_text()
    else:
        known = ", ".join(GPU_TARGETS)
        raise UserError(f"--gpu_target={gpu_target} must be one of {known}, or a file with XLA's description of a GPU.")
    return {"topology_name": "", "topology": f"1x{shape}", "target_config": text}


if __name__ == "__main__":
    command.define_config_flag()
    flags.DEFINE_string("topology", "", "Chips to compile for, such as v5e:8x8, v5p:4x4x4 or cuda:1x8.")
    flags.DEFINE_integer("num_slices", 1, "Number of TPU slices with this topology.", lower_bound=1)
    flags.DEFINE_string(
        "gpu_target", "", f"For cuda topologies: {', '.join(GPU_TARGETS)}, or a file with XLA's description of a GPU."
    )
    command.run(main)
