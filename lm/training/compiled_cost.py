"""Compiles the training step for devices that need not be present, and reports its memory, FLOPs and collectives."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lm.config import Config
from lm.costs import CHIPS, GIB, estimate_memory, peak_flops
from lm.errors import UserError
from lm.models import MODELS, build_model
from lm.models.parameters import logical_axes
from lm.models.protocol import Model
from lm.parallel.mesh import check_divisible, make_mesh
from lm.tasks import task_of
from lm.training.multipliers import learning_rate_multipliers
from lm.training.optimizers import make_optimizer
from lm.training.program import (
    COLLECTIVES,
    arrays_like_scores,
    collective_bytes,
    float32_products,
    instructions,
    kernel_calls,
)
from lm.training.state import abstract_state
from lm.training.step import trace_train_step

ANY_STEPS = 2**30


@dataclass(frozen=True)
class Report:
    """The cost of a compiled training step. Memory sizes are in bytes per device."""

    devices: str
    mesh: str
    kernel: str  # kernel used for attention
    parameters: int
    tokens: int  # per step, over all devices
    train_flops: float  # per step and device
    peak: float | None  # FLOP/s of one device
    capacity: float | None  # bytes
    estimate: int  # bytes, estimated by lm/costs.py without compiling
    compile_seconds: float
    state: int | None  # bytes of parameters, optimizer state and batch; None if XLA ran out of memory
    temporaries: int | None
    donated: int | None  # bytes of the old state that the new state reuses
    collectives: dict[str, int]  # occurrences in the text of the program
    collective_bytes: dict[str, int]  # per step and device
    kernels: dict[str, int]  # calls of fused kernels per step
    float32_products: list[str]  # the operands of each matrix product in float32
    like_scores: set[str]  # the types of arrays as large as all attention scores of a layer
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


def trace_for(
    config: Config, devices: Sequence[Any], platform: str
) -> tuple[jax.stages.Traced, Model, Mapping[str, int]]:
    """Traces the step for `devices`, which need not be present. Raises UserError for an unsuitable config.

    Returns the traced step, the model, and the sizes of the axes of the mesh.
    """
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
    state = abstract_state(config, model, optimizer, mesh)
    return trace_train_step(config, model, optimizer, state, mesh), model, mesh.shape


def compile_for(config: Config, devices: Sequence[Any], platform: str) -> Report:
    """Compiles the step traced by `trace_for`, and reports its cost."""
    start = time.perf_counter()
    traced, model, mesh = trace_for(config, devices, platform)
    lengths = config.data.sequence_length, config.data.source_length
    kind, rows = devices[0].device_kind, config.train.batch_size
    memory: Any = None
    lowered = program = refusal = ""
    try:
        stage = traced.lower()
        lowered, compiled = stage.as_text(), stage.compile()
        memory, program = compiled.memory_analysis(), compiled.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+|total memory required.*?\([\d.]+\w\)", str(error))
        refusal = sizes.group() if sizes else " ".join(str(error).split())[:120]
    parsed = instructions(program)
    local = rows // config.train.accumulation // (mesh["data"] * mesh["fsdp"])
    pairs = {(lengths[i], lengths[j]) for i, j in ((0, 0), (0, 1), (1, 1)) if lengths[i] and lengths[j]}
    heads = max(1, config.model.num_heads // mesh["tensor"])
    return Report(
        devices=f"{len(devices)} x {kind}",
        mesh=" x ".join(f"{name} {size}" for name, size in mesh.items()),
        kernel=model.attention_kernels(*lengths),
        parameters=model.parameter_counts().total,
        tokens=rows * sum(lengths),
        train_flops=model.flops_per_row(*lengths).train * rows / len(devices),
        peak=peak_flops(kind, config.model.dtype),
        capacity=CHIPS[kind].memory_gib * GIB if kind in CHIPS else None,
        estimate=estimate_memory(config, model, mesh, platform).total,
        compile_seconds=time.perf_counter() - start,
        state=memory and memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory and memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        donated=memory and memory.alias_size_in_bytes,
        collectives=count_collectives(program),
        collective_bytes=collective_bytes(parsed),
        kernels=kernel_calls(parsed),
        float32_products=float32_products(lowered),
        like_scores=set().union(*(arrays_like_scores(parsed, local, heads, pair) for pair in pairs)),
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
    sizes = ", ".join(f"{name} {gib(size)}" for name, size in report.collective_bytes.items() if size)
    kernels = ", ".join(f"{name} {count}" for name, count in report.kernels.items())
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
        ("  donated", gib(report.donated)),
        ("collectives in the program", collectives or "none"),
        ("  bytes per step", sizes or "none"),
        ("calls of fused kernels", kernels or "none"),
        ("float32 matrix products", f"{len(report.float32_products)}"),
        ("arrays as large as scores", ", ".join(sorted(report.like_scores)) or "none"),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)
