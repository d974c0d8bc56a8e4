"""Describes a run before its first step: versions, devices, data, parameters and memory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import traverse_util
from jax.sharding import Mesh
from rich.table import Table

from lm.config import Config
from lm.costs import estimate_memory
from lm.data.packing.rows import TrainRows
from lm.models.parameters import count_parameters
from lm.models.protocol import Model
from lm.reporting.progress import short_number
from lm.runs.huge_pages import are_used
from lm.runs.prepare import Prepared
from lm.training.epochs import describe_epochs
from lm.training.multipliers import Multiplier, all_one, describe_multipliers
from lm.training.names import decayed

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the results."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_run(
    config: Config,
    prepared: Prepared,
    rows: TrainRows,
    evaluated: Mapping[str, Sequence[str]],
    mesh: Mesh,
    model: Model,
) -> Table:
    """Describes a run in a table. `evaluated` holds the notes about the validation rows of each data source."""
    kernels = model.attention_kernels(config.data.sequence_length, config.data.source_length)
    dtype = config.model.dtype
    if model.activation_dtype != dtype:
        dtype = f"{dtype} with {model.activation_dtype} activations"
    table = describe_data(prepared, rows.notes(), evaluated, f"{mesh_of(mesh)}; attention {kernels}", dtype)
    steps = config.train.num_steps
    step_tokens = config.train.batch_size * (config.data.sequence_length + config.data.source_length)
    plan = f"{steps:,} steps of {step_tokens:,} tokens = {short_number(step_tokens * steps)} tokens"
    table.add_row("plan", f"{plan}, {describe_epochs(config, rows)}")
    if config.optimizer.learning_rate == 0:
        table.add_row("", "optimizer.learning_rate is 0, so no step changes the parameters")
    return table


def mesh_of(mesh: Mesh) -> str:
    return f"mesh {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"


def describe_data(
    prepared: Prepared,
    trained: Mapping[str, Sequence[str]],
    evaluated: Mapping[str, Sequence[str]],
    placement: str,
    dtype: str,
) -> Table:
    """Describes versions, devices and data. The mappings hold notes about the rows of each data source."""
    table = Table.grid(padding=(0, 2))
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices = f"{jax.process_count()} processes with {devices} each"
    table.add_row("versions", "  ".join(f"{name} {version}" for name, version in versions().items()))
    pages = "; huge pages" if jax.default_backend() == "cpu" and are_used() else ""
    table.add_row("devices", f"{devices}; {placement}; compute {dtype}{pages}")
    for split, notes in (("train", trained), ("valid", evaluated)):
        for name, store in prepared.stores[split].items():
            table.add_row(f"{split} data", f"{name}: {store.describe(short_number)}")
            for note in notes.get(name, []):
                table.add_row("", f"  {note}")
    for line in prepared.overlap_lines():
        table.add_row("", line)
    return table


def parameter_table(params: Any, multipliers: Mapping[str, Multiplier]) -> Table:
    """Returns a table that shows each parameter's shape and layout on the mesh, and whether weight decay applies to it.

    Corresponding parameters of unrolled layers share a row if they have the same shape. Learning-rate multipliers are
    shown unless all are 1.
    """
    columns = ["parameter", "shape", "on the mesh", "decay"] + ([] if all_one(multipliers) else ["multiplier"])
    leaves = traverse_util.flatten_dict(params, sep="/")
    kinds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, leaf in leaves.items():
        kinds.setdefault((re.sub(r"layer_\d+", "layer_*", name), leaf.shape), []).append(name)
    title = f"{count_parameters(params):,} parameters"
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("number", justify="right")
    for (kind, sizes), members in kinds.items():
        name, leaf = members[0], leaves[members[0]]
        shape = " x ".join(map(str, sizes)) + (f"  ({len(members)} layers)" if len(members) > 1 else "")
        axes = ["-" if axis is None else str(axis) for axis in leaf.sharding.spec]
        layout = ", ".join(axes) if any(leaf.sharding.spec) else "whole"
        multiplier = describe_multipliers([multipliers[each] for each in members])
        decay = "yes" if decayed(tuple(name.split("/"))) and multiplier != "frozen" else ""
        cells = (kind, shape, layout, decay, multiplier)[: len(columns)]
        table.add_row(*cells, f"{len(members) * math.prod(sizes):,}")
    return table


def estimate_line(config: Config, model: Model, mesh: Mesh) -> str:
    """Returns a line with the estimated memory that a step needs on each device, broken down by purpose."""
    estimate = estimate_memory(config, model, mesh.shape, mesh.devices.flat[0].platform)
    parts = ", ".join(f"{name} {short_number(size)}B" for name, size in dataclasses.asdict(estimate).items() if size)
    return f"Estimated memory per device: {short_number(estimate.total)}B ({parts})"
