"""Compiles the training step for devices that need not be present, and reports its memory, FLOPs and collectives."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lm.config import Config
from lm.costs import CHIPS, estimate_memory, peak_flops
from lm.errors import UserError
from lm.models import MODELS, build_model
from lm.models.parameters import logical_axes
from lm.parallel.mesh import check_divisible, make_mesh
from lm.tasks import task_of
from lm.training.multipliers import learning_rate_multipliers
from lm.training.optimizers import make_optimizer
from lm.training.state import abstract_state
from lm.training.step import compile_train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
GIB = 2**30
ANY_STEPS = 2**30


@dataclass(frozen=True)
class Report:
    """The cost of a compiled training step. Memory sizes are in bytes per device."""

    devices: str
    mesh: str
    kernel: str
    parameters: int
    tokens: int  # per step, over all devices
    train_flops: float  # per step and device
    peak: float | None  # FLOP/s of one device
    capacity: float | None  # bytes
    estimate: int  # bytes, estimated by lm/costs.py without compiling
    compile_seconds: float
    state: int | None  # bytes of parameters, optimizer state and batch; None if XLA ran out of memory
    temporaries: int | None
    collectives: dict[str, int]
    refusal: str  # XLA's out-of-memory message, or ""

    @property
    def needed(self) -> int | None:
        return None if self.state is None or self.temporaries is None else self.state + self.temporaries

    @property
    def fits(self) -> bool | None:
        """Whether the step fits in memory, or None if the memory size of the chip is unknown."""
        if self.needed is None:
            return False
        return None if self.capacity is None else self.needed <= self.capacity


def compile_for(config: Config, devices: Sequence[Any], platform: str) -> Report:
    """Compiles the step for `devices`, which need not be present. Raises UserError for an unsuitable config."""
    if MODELS[config.model.architecture].fit is not None:
        raise UserError(f"config.model.architecture: '{config.model.architecture}' has no training step to compile.")
    if config.model.vocab_size == 0:
        raise UserError(
            "config.model.vocab_size must not be 0, because no tokenizer is built here; set it to 32768, for example."
        )
    if config.train.num_steps < 1:  # only train.num_epochs is set; neither setting affects the cost of a step
        config = config.with_num_steps(ANY_STEPS)
    mesh = make_mesh(config.mesh, devices)
    check_divisible(config, mesh)
    model = build_model(config.model, task_of(config).head(config), platform)
    multipliers = learning_rate_multipliers(config, model)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps, multipliers, logical_axes(model))
    lengths = config.data.sequence_length, config.data.source_length
    kind, rows = devices[0].device_kind, config.train.batch_size
    start = time.perf_counter()
    memory: Any = None
    program = refusal = ""
    try:
        compiled = compile_train_step(config, model, optimizer, abstract_state(config, model, optimizer, mesh), mesh)
        memory, program = compiled.memory_analysis(), compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+|total memory required.*?\([\d.]+\w\)", str(error))
        refusal = sizes.group() if sizes else " ".join(str(error).split())[:120]
    return Report(
        devices=f"{len(devices)} x {kind}",
        mesh=" x ".join(f"{name} {size}" for name, size in mesh.shape.items()),
        kernel=model.kernel,
        parameters=model.parameter_counts().total,
        tokens=rows * sum(lengths),
        train_flops=model.flops_per_row(*lengths).train * rows / len(devices),
        peak=peak_flops(kind, config.model.dtype),
        capacity=CHIPS[kind].memory_gib * GIB if kind in CHIPS else None,
        estimate=estimate_memory(config, model, mesh.shape).total,
        compile_seconds=time.perf_counter() - start,
        state=memory and memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory and memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        collectives=count_collectives(program),
        refusal=refusal,
    )


def count_collectives(program: str) -> dict[str, int]:
    """Counts each kind of collective in a compiled program. A collective inside a loop is counted once."""
    found = re.findall(rf"[\s=]({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    return {name: found.count(name) for name in COLLECTIVES}


def table(report: Report) -> str:
    def gib(size: float | None) -> str:
        return "unknown" if size is None else f"{size / GIB:.2f} GiB"

    collectives = ", ".join(f"{name} {count}" for name, count in report.collectives.items() if count)
    verdict = {True: "fits", False: "does not fit", None: "unknown for this device"}[report.fits]
    rows = [
        ("devices", report.devices),
        ("mesh", report.mesh),
        ("attention", report.kernel),
        ("parameters", f"{report.parameters:,}"),
        ("tokens per step", f"{report.tokens:,}"),
        ("FLOPs per step and device", f"{report.train_flops:.3g}"),
        ("  at 100 % of peak", "unknown" if report.peak is None else f"{report.train_flops / report.peak:.3f} s"),
        ("compiled in", f"{report.compile_seconds:.1f} s"),
        ("memory per device, state", gib(report.state)),
        ("  temporaries", gib(report.temporaries)),
        ("  total", gib(report.needed)),
        ("  available", gib(report.capacity)),
        ("  estimated at start-up", gib(report.estimate)),
        ("verdict", f"{verdict} ({report.refusal})" if report.refusal else verdict),
        ("collectives in the program", collectives or "none"),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
