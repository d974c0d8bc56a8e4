"""What a run tells before its first step: versions, devices, data, parameters, memory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import re
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from lm import flops
from lm.config import Config
from lm.data.pair_store import PairStore
from lm.data.prepare import Prepared
from lm.data.token_store import TokenStore
from lm.models.transformer import count_parameters
from lm.parallel.distributed import describe_processes
from lm.rows import AnyTrainRows
from lm.training.optimizer import decay_table
from lm.training.progress import short_number

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_run(config: Config, prepared: Prepared, rows: AnyTrainRows, mesh: Mesh, backend: str) -> Table:
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
            table.add_row(f"{split} data", f"{name}: {_described(store)}")
    step_tokens = config.train.batch_size * (config.data.sequence_length + config.data.source_length)
    total = step_tokens * config.train.num_steps
    epochs = config.train.batch_size * config.train.num_steps / sum(rows.rows_per_epoch().values())
    table.add_row(
        "plan",
        f"{config.train.num_steps:,} steps of {step_tokens:,} tokens = {short_number(total)} tokens, "
        f"{epochs:.1f} times the training data",
    )
    return table


def _described(store: TokenStore | PairStore) -> str:
    """How much is in it."""
    if isinstance(store, PairStore):
        source, target = store.source.manifest["counts"], store.target.manifest["counts"]
        tokens = f"{short_number(source['tokens'])} and {short_number(target['tokens'])} tokens"
        return f"{store.num_pairs:,} pairs, {short_number(source['bytes'] + target['bytes'])} bytes, {tokens}"
    counts = store.manifest["counts"]
    sizes = ", ".join(f"{short_number(counts[name])} {name}" for name in ("bytes", "tokens"))
    return f"{counts['documents']:,} documents, {sizes}"


def parameter_table(params: Any) -> Table:
    """Every kind of parameter with its shape, its layout on the mesh and whether weight decay acts on it.

    `params` is abstract, with shardings. Equal parameters of unrolled layers share one line.
    """
    kinds: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(key.key) for key in path)
        kinds.setdefault(re.sub(r"layer_\d+", "layer_*", name), []).append((name, leaf))
    decays = decay_table(params)
    table = Table(title=f"{count_parameters(params):,} parameters", title_justify="left", box=None, pad_edge=False)
    for column in ("parameter", "shape", "on the mesh", "decay"):
        table.add_column(column)
    table.add_column("number", justify="right")
    for kind, members in kinds.items():
        name, leaf = members[0]
        shape = " x ".join(map(str, leaf.shape)) + (f"  ({len(members)} layers)" if len(members) > 1 else "")
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
        whole = not any(leaf.sharding.spec)
        decay = "yes" if decays[name] else ""
        number = len(members) * math.prod(leaf.shape)
        table.add_row(kind, shape, "whole" if whole else spec, decay, f"{number:,}")
    return table


def estimate_line(config: Config, mesh: Mesh, backend: str) -> str:
    """The memory that a step is expected to take on each device, by purpose."""
    estimate = flops.estimate_memory(config, mesh.shape, backend)
    parts = ", ".join(f"{name} {short_number(size)}B" for name, size in dataclasses.asdict(estimate).items() if size)
    return f"Memory per device, estimated: {short_number(estimate.total)}B ({parts})"
