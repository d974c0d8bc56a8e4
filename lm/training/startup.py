"""What a run tells before its first step: versions, devices, data, parameters, memory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from lm import costs as flops
from lm.config import Config
from lm.data.packing.rows import TrainRows
from lm.models.transformer.wiring import count_parameters
from lm.parallel.distributed import describe_processes
from lm.reporting.progress import short_number
from lm.runs.prepare import Prepared
from lm.tasks import task_of
from lm.training.multipliers import Rate, all_one, shown
from lm.training.names import decay_table

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_run(config: Config, prepared: Prepared, rows: TrainRows, mesh: Mesh, backend: str) -> Table:
    """Where the run takes place and on what."""
    table = Table.grid(padding=(0, 2))
    processes = describe_processes()
    devices = ", ".join(f"{count} x {kind}" for _, kind, count in processes[:1])
    if len(processes) > 1:
        devices = f"{len(processes)} processes with {devices} each"
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table.add_row("versions", "  ".join(f"{name} {version}" for name, version in versions().items()))
    table.add_row("devices", f"{devices}; mesh {shape}; attention {backend}; compute {config.model.dtype}")
    for split, stores in prepared.stores.items():
        for name, store in stores.items():
            table.add_row(f"{split} data", f"{name}: {store.describe(short_number)}")
    for name, notes in rows.notes().items():
        for note in notes:
            table.add_row("", f"{name}: {note}")
    step_tokens = config.train.batch_size * (config.data.sequence_length + config.data.source_length)
    total = step_tokens * config.train.num_steps
    epochs = config.train.batch_size * config.train.num_steps / sum(rows.rows_per_epoch().values())
    table.add_row(
        "plan",
        f"{config.train.num_steps:,} steps of {step_tokens:,} tokens = {short_number(total)} tokens, "
        f"{epochs:.1f} times the training data",
    )
    return table


def parameter_table(params: Any, rates: Mapping[str, Rate] | None = None) -> Table:
    """Every kind of parameter with its shape, its layout on the mesh and whether weight decay acts on it.

    `params` is abstract, with shardings. Equal parameters of unrolled layers share one line. With the `rates` of
    `rate_multipliers`, if any is not 1, also the multiplier of the learning rate.
    """
    rates = None if rates is None or all_one(rates) else rates
    kinds: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(key.key) for key in path)
        kinds.setdefault(re.sub(r"layer_\d+", "layer_*", name), []).append((name, leaf))
    decays = decay_table(params)
    table = Table(title=f"{count_parameters(params):,} parameters", title_justify="left", box=None, pad_edge=False)
    for column in ("parameter", "shape", "on the mesh", "decay", *(() if rates is None else ("rate",))):
        table.add_column(column)
    table.add_column("number", justify="right")
    for kind, members in kinds.items():
        name, leaf = members[0]
        shape = " x ".join(map(str, leaf.shape)) + (f"  ({len(members)} layers)" if len(members) > 1 else "")
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
        whole = not any(leaf.sharding.spec)
        rate = [] if rates is None else [shown([rates[each] for each, _ in members])]
        decay = "yes" if decays[name] and rate != ["frozen"] else ""
        number = len(members) * math.prod(leaf.shape)
        table.add_row(kind, shape, "whole" if whole else spec, decay, *rate, f"{number:,}")
    return table


def estimate_line(config: Config, mesh: Mesh, backend: str) -> str:
    """The memory that a step is expected to take on each device, by purpose."""
    estimate = flops.estimate_memory(config, mesh.shape, backend, task_of(config).head(config))
    parts = ", ".join(f"{name} {short_number(size)}B" for name, size in dataclasses.asdict(estimate).items() if size)
    return f"Memory per device, estimated: {short_number(estimate.total)}B ({parts})"
