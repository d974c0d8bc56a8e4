"""Topologies of devices that this machine does not have, to compile programs for."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from jax.experimental import topologies

from lm.errors import UserError


def absent_devices(topology: str, num_slices: int = 1, gpu_target: str = "") -> tuple[list[Any], str]:
    """Returns (devices, platform) of a topology such as v5e:8x8 or cuda:1x8 without allocating anything.

    Raises UserError if the compiler for it is not installed or does not know the topology.
    """
    family, _, shape = topology.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(f"--topology={topology}: has the form v5e:8x8 (TPU) or cuda:1x8 (hosts x GPUs).")
    options: dict[str, Any]
    if family == "cuda":
        platform, options = "cuda", _cuda_options(topology, shape, gpu_target)
        # Otherwise the compiler would time its candidates on a GPU.
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"--topology={topology}: needs libtpu; pip install -r requirements-tpu.txt.")
        # Without these, libtpu asks a metadata server, which exists only on Google Cloud.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-64")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        platform = "tpu"
        options = {"topology_name": topology} | ({"num_slices": num_slices} if num_slices > 1 else {})
    try:
        description = topologies.get_topology_desc(platform=platform, **options)
    except Exception as error:  # the type differs between plug-ins
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={topology}: is not known to the {platform} compiler ({reason}).") from error
    return list(description.devices), {"cuda": "gpu"}.get(platform, platform)


def _cuda_options(topology: str, shape: str, gpu_target: str) -> dict[str, Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(f"--topology={topology}: needs JAX's CUDA plug-in; pip install -r requirements-cuda.txt.")
    if shape.count("x") != 1:
        raise UserError(f"--topology={topology}: has the form cuda:HOSTSxGPUS, e.g. cuda:1x8.")
    if not Path(gpu_target).is_file():
        raise UserError(
            f"--gpu_target={gpu_target}: name XLA's description of the chip (target_config/specs/NAME.txtpb)."
        )
    return {"topology_name": "", "topology": f"1x{shape}", "target_config": Path(gpu_target).read_text()}
