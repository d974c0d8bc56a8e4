"""Compiles the training step for chips that are not there, and says what it needs.

    python -m lm.aot --config=configs/NAME.py --topology=v5e:8x8 [--config.mesh.fsdp=64 ...]

TPU topologies are named as v4:2x2x4, v5e:8x8, v5p:4x4x4, v6e:4x4, tpu7x:2x2x1 (`pip install -r requirements-tpu.txt`,
on any Linux machine). `--num_slices=2` joins two of them over the data-centre network. For NVIDIA GPUs the topology is
cuda:HOSTSxGPUS, e.g. cuda:2x8, with --gpu_target=FILE, XLA's text description of the chip
(xla/backends/gpu/target_config/specs/*.txtpb), and `pip install -r requirements-cuda.txt`. No data is read: the config
must name model.vocab_size. Exit status 0 if the step fits in the chip's memory, 1 if not.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies

from lm.config import Config, command
from lm.costs import CHIPS, estimate_memory, flops_per_row, parameter_counts, peak_flops
from lm.errors import UserError
from lm.models.transformer.attention_kernels import choose_backend
from lm.models.transformer.wiring import build_model
from lm.parallel.mesh import check_divisible, make_mesh
from lm.training.multipliers import learning_rate_multipliers
from lm.training.optimizers.chain import make_optimizer
from lm.training.state import abstract_state
from lm.training.step import compile_train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
GIB = 2**30


@dataclass(frozen=True)
class Report:
    """What compiling for some devices showed. Bytes are those of one device."""

    devices: str
    mesh: str
    kernel: str
    parameters: int
    tokens: int  # of a step, on all devices
    train_flops: float  # of a step, on one device
    peak: float | None  # FLOP/s of one device
    capacity: float | None  # bytes
    estimate: int  # by lm/costs.py, before compiling
    compile_seconds: float
    state: int | None = None  # parameters, optimizer and batch; None if XLA refused the program
    temporaries: int | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    refusal: str = ""  # what XLA said when it ran out of memory

    @property
    def needed(self) -> int | None:
        return None if self.state is None or self.temporaries is None else self.state + self.temporaries

    @property
    def fits(self) -> bool | None:
        """None for a chip whose memory is not known."""
        if self.refusal or self.needed is None:
            return False
        return None if self.capacity is None else self.needed <= self.capacity


def compile_for(config: Config, devices: Sequence[Any], platform: str) -> Report:
    """Compiles the training step for devices, present or not. Raises UserError if they do not suit the config."""
    if config.model.vocab_size == 0:
        raise UserError("config.model.vocab_size: is 0, and no tokenizer is built here; name it, e.g. 32768.")
    mesh = make_mesh(config.mesh, devices)
    check_divisible(config, mesh)
    kernel = choose_backend(config.model, platform)
    model = build_model(config.model, platform)
    multipliers = learning_rate_multipliers(config, model)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps, multipliers)
    lengths = config.data.sequence_length, config.data.source_length
    kind, tokens = devices[0].device_kind, config.train.batch_size * sum(lengths)
    row = flops_per_row(config.model, *lengths)
    chip = CHIPS.get(kind)
    start = time.perf_counter()
    compiled, refusal = None, ""
    try:
        compiled = compile_train_step(config, model, optimizer, abstract_state(config, model, optimizer, mesh), mesh)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = _used_of_capacity(str(error))
    report = Report(
        devices=f"{len(devices)} x {kind}",
        mesh=" x ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        kernel=kernel,
        parameters=parameter_counts(config.model).total,
        tokens=tokens,
        train_flops=row.train * config.train.batch_size / len(devices),
        peak=peak_flops(kind, config.model.dtype),
        capacity=None if chip is None else chip.memory_gib * GIB,
        estimate=estimate_memory(config, mesh.shape, kernel).total,
        compile_seconds=time.perf_counter() - start,
        refusal=refusal,
    )
    if compiled is None:
        return report
    memory: Any = compiled.memory_analysis()
    return dataclasses.replace(
        report,
        state=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        collectives=count_collectives(compiled.as_text() or ""),
    )


def count_collectives(program: str) -> dict[str, int]:
    """How often each collective stands in a compiled program; what a loop repeats counts once."""
    found = re.findall(rf"[\s=]({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    return {name: found.count(name) for name in COLLECTIVES}


def table(report: Report) -> str:
    """The report as lines of name and value."""

    def gib(size: float | None) -> str:
        return "unknown" if size is None else f"{size / GIB:.2f} GiB"

    verdict = {True: "fits", False: "does not fit", None: "not known for this device"}[report.fits]
    rows = [
        ("devices", report.devices),
        ("mesh", report.mesh),
        ("attention", report.kernel),
        ("parameters", f"{report.parameters:,}"),
        ("tokens a step", f"{report.tokens:,}"),
        ("FLOPs a step and device", f"{report.train_flops:.3g}"),
        ("  at 100 % of peak", "unknown" if report.peak is None else f"{report.train_flops / report.peak:.3f} s"),
        ("compiled in", f"{report.compile_seconds:.1f} s"),
        ("memory a device, state", gib(report.state)),
        ("  temporaries", gib(report.temporaries)),
        ("  in all", gib(report.needed)),
        ("  there is", gib(report.capacity)),
        ("  estimated at start-up", gib(report.estimate)),
        ("verdict", f"{verdict} ({report.refusal})" if report.refusal else verdict),
        (
            "collectives in the program",
            ", ".join(f"{name} {n}" for name, n in report.collectives.items() if n) or "none",
        ),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)


def absent_devices(topology: str, num_slices: int = 1, gpu_target: str = "") -> tuple[list[Any], str]:
    """(devices, platform) of a topology such as v5e:8x8 or cuda:1x8; nothing is allocated.

    Raises UserError if the compiler for them is not installed, or knows no such topology.
    """
    family, _, shape = topology.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(f"--topology={topology}: has the form v5e:8x8 (TPU) or cuda:1x8 (hosts x GPUs).")
    options: dict[str, Any]
    if family == "cuda":
        platform, options = "cuda", _cuda_options(topology, shape, gpu_target)
        # The compiler would time its candidates on a GPU.
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    else:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"--topology={topology}: needs libtpu; pip install -r requirements-tpu.txt.")
        # Without these libtpu asks a metadata server, which is there on Google Cloud alone.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-64")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        platform, options = "tpu", {"topology_name": topology}
        if num_slices > 1:
            options["num_slices"] = num_slices
    try:
        description = topologies.get_topology_desc(platform=platform, **options)
    except Exception as error:  # what is raised differs between plug-ins
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


def _used_of_capacity(message: str) -> str:
    """The figures in XLA's refusal, e.g. "Used 20.1G of 15.7G hbm"."""
    found = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+|total memory required.*?\([\d.]+\w\)", message)
    return found.group() if found else " ".join(message.split())[:120]


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
    flags.DEFINE_integer("num_slices", 1, "TPU slices of that shape.", lower_bound=1)
    flags.DEFINE_string("gpu_target", "", "For cuda: file with XLA's description of the chip.")
    command.run(main)
