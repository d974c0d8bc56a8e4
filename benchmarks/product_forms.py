"""Measures how fast XLA computes the matrix products of a training step on a CPU, in several equivalent forms.

    python -m benchmarks.product_forms [--tokens=4096 --inputs=384 --outputs=1536] [--rounds=15] [--record]

This is the minimal reproduction of what limits the speed of bfloat16 on CPUs: XLA's library of kernels is used only for
some forms of a product, and XLA turns other forms into float32 products (see `lm.models.products`). With x (T, I),
w (I, O) and dy (T, O), the products are y = x w, dx = dy w^T and dw = x^T dy. The forms take turns. For comparison,
PyTorch computes the same products, if it is installed. With --record, the figures are written to
results/product_forms.json. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, surroundings, write_record
from lm.models.products import product

Run = Callable[[], Any]
FORMS = {
    "y": {
        "float32": lambda x, w, dy: x @ w,
        "bfloat16": lambda x, w, dy: x @ w,
        "bfloat16, float32 result": lambda x, w, dy: jnp.matmul(x, w, preferred_element_type=jnp.float32),
    },
    "dx": {
        "float32": lambda x, w, dy: dy @ w.T,
        "bfloat16": lambda x, w, dy: dy @ w.T,
        "bfloat16, float32 result": lambda x, w, dy: jax.lax.dot_general(
            dy, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        ),
        "bfloat16, float32 result, w transposed": lambda x, w, dy: jnp.matmul(
            dy, w.T, preferred_element_type=jnp.float32
        ),
    },
    "dw": {
        "float32": lambda x, w, dy: x.T @ dy,
        "bfloat16": lambda x, w, dy: x.T @ dy,
        "bfloat16, float32 result": lambda x, w, dy: jnp.matmul(x.T, dy, preferred_element_type=jnp.float32),
        "bfloat16, transposed outside of a loop": lambda x, w, dy: jax.vjp(
            lambda w: product(x, w, "bfloat16"), w.astype(jnp.float32)
        )[1](dy)[0],
    },
}


def xla_runs(arrays: dict[str, np.ndarray]) -> dict[str, tuple[Run, str]]:
    """Returns a function that runs each form, and a mark if XLA uses its library of kernels for it."""
    found = {}
    for result, forms in FORMS.items():
        for form, function in forms.items():
            tensors = [jnp.asarray(arrays[name], form.partition(",")[0]) for name in ("x", "w", "dy")]
            compiled = jax.jit(function).lower(*tensors).compile()
            used = "yes" if "ynn" in compiled.as_text() else "no"
            found[f"{result}: {form}"] = (lambda c=compiled, t=tensors: c(*t).block_until_ready()), used
    return found


def torch_runs(arrays: dict[str, np.ndarray]) -> dict[str, tuple[Run, str]]:
    try:
        import torch
    except ImportError:
        return {}
    forms = {"y": lambda x, w, dy: x @ w, "dx": lambda x, w, dy: dy @ w.T, "dw": lambda x, w, dy: x.T @ dy}
    found = {}
    for result, function in forms.items():
        for dtype in ("float32", "bfloat16"):
            tensors = [torch.from_numpy(arrays[name]).to(getattr(torch, dtype)) for name in ("x", "w", "dy")]
            found[f"{result}: {dtype}, PyTorch"] = (lambda f=function, t=tensors: f(*t)), ""
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (("tokens", 4096), ("inputs", 384), ("outputs", 1536), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--record", action="store_true", help="write results/product_forms.json")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("tokens", "inputs", "outputs")}
    tokens, inputs, outputs = sizes.values()
    random = np.random.default_rng(0)
    shapes = {"x": (tokens, inputs), "w": (inputs, outputs), "dy": (tokens, outputs)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    runs = xla_runs(arrays) | torch_runs(arrays)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, (run, _) in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first run warms up
                seconds[name].append(time.perf_counter() - began)
    table = Table("product", "GFLOP/s", "XLA's library of kernels", box=None)
    figures = {}
    for name, (_, used) in sorted(runs.items()):
        speed = 2 * tokens * inputs * outputs / statistics.median(seconds[name]) / 1e9
        figures[name] = {"gflops_per_second": round(speed, 1), "library": used, "seconds": seconds[name]}
        table.add_row(name, f"{speed:.0f}", used)
    Console(width=100).print(table)
    if options.record:
        write_record(RESULTS / "product_forms.json", {"sizes": sizes, "forms": figures, **surroundings()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
