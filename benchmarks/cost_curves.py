"""Measures what a training step costs against the depth, the width, the length and the batch of a decoder.

    python -m benchmarks.cost_curves [--depth=6 --width=384 --length=256 --batch=16 --dtype=float32] [--rounds=5]

A decoder of the given size (by default, nanoGPT's for Shakespeare's characters) is trained by AdamW on random tokens on
one device, while one of the four sizes varies. For each point, two processes compile the same step. The first records
the FLOPs of the compiled matrix products and the compiler's analysis of memory. The second loads the step from the
cache of the first, takes a step to warm up and `--rounds` steps, and records the median of their seconds and the peak
memory beyond that before the state was created: of the device, if it reports memory statistics, else of the process
(VmHWM, on Linux). The analytic floor is the memory of the parameters, gradients, optimizer state and saved activations.

The record is written to results/NAME.json, and a picture with a panel for each size to results/NAME.png. Seconds mean
something only if nothing else runs. With --quick, tiny models are measured to check that everything runs; nothing is
written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.record import RESULTS, surroundings, write_record
from lm.files import replacing

HEAD_DIM = 64
VOCABULARY = 256
# The values of each size, as multiples of its value in the base.
FACTORS = {
    "depth": ("1/6", "1/3", "2/3", "1", "4/3", "2"),
    "width": ("1/3", "1/2", "2/3", "1", "4/3", "2"),
    "length": ("1/4", "1/2", "1", "2", "4"),
    "batch": ("1/4", "1/2", "1", "2", "4"),
}
QUICK = {"depth": 2, "width": 128, "length": 32, "batch": 4}
UNITS = {"depth": "layers", "width": "features", "length": "tokens per row", "batch": "rows"}
FLOOR = ("parameters", "gradients", "optimizer", "activations")  # fields of lm.costs.MemoryEstimate
GB = 1e9
WIDTH = 110  # of the table, in characters
Point = dict[str, int]


def points(base: Point, *, quick: bool = False) -> dict[str, list[Point]]:
    """Returns the points of each curve. The width stays a multiple of the size of a head."""
    curves = {}
    for size, factors in FACTORS.items():
        step = HEAD_DIM if size == "width" else 1
        values = {max(step, round(base[size] * Fraction(factor) / step) * step) for factor in factors}
        curves[size] = [base | {size: value} for value in sorted(values)]
        if quick:
            curves[size] = [base, base | {size: 2 * base[size]}]
    return curves


def experiment(point: Point, dtype: str) -> Any:
    """Returns the config of a step."""
    from lm.config import Config, defaults, source

    values = defaults()
    values.data.train.random = source(kind="embedded")  # is not read
    values.data.sequence_length = point["length"]
    values.train.update(batch_size=point["batch"], num_steps=1000)
    values.mesh.update(data=1)
    values.model.update(
        vocab_size=VOCABULARY,
        num_layers=point["depth"],
        d_model=point["width"],
        num_heads=point["width"] // HEAD_DIM,
        positions="learned",
        max_length=point["length"],
        dtype=dtype,
    )
    return Config.from_dict(values.to_dict())


def compile_step(point: Point, dtype: str) -> tuple[Any, ...]:
    """Returns the compiled step, and what creates its inputs."""
    import jax

    from lm.models import build_model
    from lm.parallel.mesh import make_mesh
    from lm.tasks import task_of
    from lm.training.optimizers import make_optimizer
    from lm.training.state import abstract_state
    from lm.training.step import compile_train_step

    config = experiment(point, dtype)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    model = build_model(config.model, task_of(config).head(config), jax.devices()[0].platform)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    abstract = abstract_state(config, model, optimizer, mesh)
    return compile_train_step(config, model, optimizer, abstract, mesh), config, model, optimizer, abstract, mesh


def analyse(point: Point, dtype: str) -> dict[str, Any]:
    """Returns the costs that need no run: FLOPs, and bytes according to the compiler and to the closed forms."""
    from benchmarks.program_cost import program_cost
    from lm.costs import estimate_memory
    from lm.training.state import make_state

    step, config, model, optimizer, abstract, mesh = compile_step(point, dtype)
    platform = mesh.devices.flat[0].platform
    make_state(config, model, optimizer, abstract, mesh)  # so that `measure` finds this program in the cache too
    memory, estimate = step.memory_analysis(), estimate_memory(config, model, mesh.shape, platform)
    state = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    floor = {name: getattr(estimate, name) for name in FLOOR}
    return {
        "parameters": model.parameter_counts().total,
        "attention": model.attention_kernels(point["length"]),
        "compiled_product_flops": program_cost(step.as_text()).product_flops,
        "model_flops": model.flops_per_row(point["length"]).train * point["batch"],
        "compiler_bytes": {"state_and_batch": state, "temporaries": memory.temp_size_in_bytes},
        "floor_bytes": floor | {"total": sum(floor.values())},
        "estimate_bytes": estimate.total,
    }


def measure(point: Point, dtype: str, rounds: int) -> dict[str, Any]:
    """Takes steps. Returns their seconds, and the peak memory beyond that before the state was created."""
    import jax
    import numpy as np

    from lm.batch import Batch
    from lm.parallel.mesh import batch_sharding
    from lm.training.state import make_state

    step, config, model, optimizer, abstract, mesh = compile_step(point, dtype)
    before, _ = memory_in_use()
    state = make_state(config, model, optimizer, abstract, mesh)
    shape = (point["batch"], point["length"])
    ids = np.random.default_rng(0).integers(0, VOCABULARY, shape).astype(np.int32)
    positions, ones = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape), np.ones(shape, np.int32)
    batch = Batch(ids, np.roll(ids, -1, 1), ones.astype(np.float32), positions, ones)
    batch = jax.device_put(batch, batch_sharding(mesh))
    seconds, cpu_seconds = [], []
    for _ in range(1 + rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    now, peak = memory_in_use()
    assert np.isfinite(metrics["train/loss"]), "the loss is not finite"
    return {
        "seconds": statistics.median(seconds[1:]),
        "seconds_of_each_step": [round(each, 5) for each in seconds],
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "memory_of": "process" if jax.devices()[0].memory_stats() is None else "device",
        "measured_bytes": {"before": before, "after": now, "peak": peak, "peak_beyond_before": peak - before},
    }


def memory_in_use() -> tuple[int, int]:
    """Returns the bytes that the device uses now, and their peak; on a CPU, those of this process."""
    import jax

    if (found := jax.devices()[0].memory_stats()) is not None:
        return found["bytes_in_use"], found["peak_bytes_in_use"]
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


STAGES = {"analyse": analyse, "measure": measure}


def run_point(point: Point, dtype: str, rounds: int) -> dict[str, Any]:
    """Runs both stages for a point, each in a process of its own."""
    found: dict[str, Any] = dict(point)
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for stage in STAGES:
            options = [f"--stage={stage}", f"--point={json.dumps(point)}", f"--dtype={dtype}", f"--rounds={rounds}"]
            command = [sys.executable, "-m", "benchmarks.cost_curves", *options]
            done = subprocess.run(command, cwd=RESULTS.parent, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{stage} of {point} failed (see above).")
            found |= json.loads(done.stdout.splitlines()[-1])
    return found


def table_of(curves: dict[str, list[dict[str, Any]]], title: str) -> Table:
    table = Table(title=title, box=None, padding=(0, 2, 0, 0))
    headings = ("parameters", "GFLOPs", "s/step", "GFLOP/s", "floor GB", "compiler GB", "measured GB", "/ floor")
    for name in ("", *headings):
        table.add_column(name, justify="right" if name else "left")
    for size, found in curves.items():
        for each in found:
            flops, floor = each["compiled_product_flops"] / 1e9, each["floor_bytes"]["total"] / GB
            measured = each["measured_bytes"]["peak_beyond_before"] / GB
            numbers = [f"{flops:.4g}", f"{each['seconds']:.4g}", f"{flops / each['seconds']:.4g}", f"{floor:.3f}"]
            numbers += [f"{sum(each['compiler_bytes'].values()) / GB:.3f}", f"{measured:.3f}"]
            table.add_row(f"{size} {each[size]}", f"{each['parameters']:,}", *numbers, f"{measured / floor:.2f}")
        table.add_section()
    return table


def draw(curves: dict[str, list[dict[str, Any]]], base: Point, path: Path, title: str) -> None:
    """Draws a panel for each size: memory on the left axis, time on the right. Writes a PNG file atomically."""
    from matplotlib.figure import Figure

    from lm.reporting.curves import BLUE, GREY, ORANGE

    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    for axes, (size, found) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        values = [each[size] for each in found]
        layers = [[each["floor_bytes"][name] / GB for each in found] for name in FLOOR]
        names = [f"floor: {name}" for name in ("parameters", "gradients", "optimizer state", "saved activations")]
        axes.stackplot(values, layers, labels=names, colors=("#8fa3b5", "#a9bac8", "#c4d0da", "#e2e8ed"))
        compiler = [sum(each["compiler_bytes"].values()) / GB for each in found]
        axes.plot(values, compiler, "--", color=BLUE, label="memory, by the compiler's analysis")
        measured = [each["measured_bytes"]["peak_beyond_before"] / GB for each in found]
        axes.plot(values, measured, "o-", color=BLUE, label="memory, measured")
        at_base = next(each for each in found if each[size] == base[size])
        speed = at_base["compiled_product_flops"] / at_base["seconds"]
        times = axes.twinx()
        times.plot(values, [each["seconds"] for each in found], "s-", color=ORANGE, label="seconds, measured")
        at_speed = [each["compiled_product_flops"] / speed for each in found]
        times.plot(values, at_speed, ":", color=ORANGE, label="FLOPs, at the speed of the base")
        axes.axvline(base[size], color=GREY, linewidth=0.8, label="base of all panels")
        axes.set(title=f"{size} ({UNITS[size]})", xlim=(0, None), ylim=(0, None), ylabel="GB")
        times.set(ylim=(0, None), ylabel="seconds per step")
        for each in (axes, times):
            each.spines["top"].set_visible(False)
    handles = [each.get_legend_handles_labels() for each in (axes, times)]
    labels = [label for _, names in handles for label in names]
    figure.legend([line for lines, _ in handles for line in lines], labels, loc="outside lower center", ncols=4)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size, value in (("depth", 6), ("width", 384), ("length", 256), ("batch", 16)):
        parser.add_argument(f"--{size}", type=int, default=value, help=f"{UNITS[size]} of the base (default {value})")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5, help="number of timed steps at each point")
    parser.add_argument("--name", default="cost_curves", help="name of the record in results/")
    parser.add_argument("--note", default="", help="remarks for the reader of the record")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs; writes nothing")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        arguments = () if options.stage == "analyse" else (options.rounds,)
        print(json.dumps(STAGES[options.stage](options.point, options.dtype, *arguments)))
        return 0
    base = QUICK if options.quick else {size: getattr(options, size) for size in FACTORS}
    rounds = 1 if options.quick else options.rounds
    if base["width"] % HEAD_DIM or min(base.values()) < 1 or rounds < 1:
        parser.error(f"--width must be a multiple of {HEAD_DIM}, and all sizes and --rounds at least 1.")
    wanted = [(size, point) for size, each in points(base, quick=options.quick).items() for point in each]
    distinct: dict[str, dict[str, Any]] = {}  # the base belongs to all curves, but is measured once
    for _, point in track(wanted, "Measuring", console=Console(stderr=True)):
        if (key := json.dumps(point)) not in distinct:
            distinct[key] = run_point(point, options.dtype, rounds)
    curves: dict[str, list[dict[str, Any]]] = {size: [] for size in FACTORS}
    for size, point in wanted:
        curves[size].append(distinct[json.dumps(point)])
    model = ", ".join(f"{size} {value}" for size, value in base.items())
    if options.quick:
        Console(width=WIDTH).print(
            table_of(curves, f"QUICK CHECK of tiny models, not a measurement ({model}, {options.dtype})")
        )
        print("Nothing was written: leave out --quick to measure.")
        return 0
    Console(width=WIDTH).print(table_of(curves, f"A training step ({model}, {options.dtype})"))
    record = {"name": options.name, "note": options.note, "base": base, "dtype": options.dtype, "rounds": rounds}
    record |= {"curves": curves, **surroundings()}
    title = f"Cost of a training step of a decoder with {model} in {options.dtype}\n{record['hardware']}"
    draw(curves, base, RESULTS / f"{options.name}.png", title)
    write_record(RESULTS / f"{options.name}.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
