"""Compares our training step on a GPU with compiled PyTorch: tokens per second, share of the peak, and memory.

    pip install -r requirements-cuda.txt -r requirements-benchmarks.txt
    NANOGPT=FOLDER python -m benchmarks.gpu_speed [--models=gpt2-124m,bert-base] [--record]

Each system runs in a process of its own (benchmarks/step_systems.py) with the same initial weights and the same
batches, whose rows are full and hold one text each; the losses of the first steps must agree. Products are computed in
bfloat16. Between them, our activations are bfloat16, while PyTorch's autocast keeps some in float32. PyTorch uses
torch.compile, its fused attention and its fused AdamW. FOLDER is a clone of nanoGPT, with which GPT-2 is compared. To
predict masked tokens, ours computes only their logits, and PyTorch those of all tokens.

The systems of a model take turns, and the medians are reported. The FLOPs of a step are those of the matrix products of
ours, with those of attention as if it were not causal (Chowdhery 2022, appendix B). They are divided by the time and by
the peak of the data sheet, or by the speed of a product of two large matrices, which PyTorch computes. With --record,
the measurements of each model are written to results/gpu_speed.json as soon as they are complete; those of other models
are kept. A model takes two to four minutes, most of it for compiling.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, add_results, commit, surroundings
from benchmarks.step_models import GPU_MODELS, write_folder
from benchmarks.step_speed import System, agreeing_losses, take_turns
from lm.costs import peak_flops

RECORD = RESULTS / "gpu_speed.json"
DTYPE = "bfloat16"
SIZE = 8192  # of the matrices whose product is timed


def product_speed() -> float:
    """Returns the FLOP/s of a product of two random matrices in bfloat16, the median of several."""
    import torch

    x, y = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        x @ y
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * SIZE**3 / statistics.median(seconds[5:])


def measure(model: str, rounds: int, steps: int) -> dict[str, Any]:
    import torch

    size, gpu = GPU_MODELS[model], torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(size, Path(folder), "cuda")
        torch.cuda.empty_cache()
        systems = [System(name, model, DTYPE, Path(folder)) for name in ("ours", *size.peers)]
        losses = agreeing_losses(systems, model, DTYPE)
        reached = product_speed()  # now that nothing else uses the GPU
        take_turns(systems, rounds, steps)
    return {
        "title": size.title,
        "rows": size.rows,
        "lengths": [each for each in (size.source_length, size.length) if each],
        "tokens": size.rows * (size.length + size.source_length),
        "flops": systems[0].first["flops"],
        "gpu": gpu,
        "peak_flops_per_second": peak_flops(gpu, DTYPE),
        "product_flops_per_second": reached,
        "losses": losses,
        "systems": {each.name: figures(each) for each in systems},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "nanogpt": commit(Path(os.environ["NANOGPT"])) if "nanogpt" in size.peers else "",
        **surroundings(),
    }


def figures(system: System) -> dict[str, Any]:
    return {
        "seconds_per_step": statistics.median(system.times),
        "times": system.times,
        "first_seconds": system.first["first_seconds"],
        "peak_device_bytes": system.device_peak,
    }


def rows_of(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the rows of a table: model, system, ms per step, tokens/s, two shares, speed of ours, and memory."""
    rows = []
    for result in results.values():
        ours = result["systems"]["ours"]["seconds_per_step"]
        for name, each in result["systems"].items():
            seconds, shares = each["seconds_per_step"], ["", ""]
            for i, key in enumerate(("peak_flops_per_second", "product_flops_per_second")):
                if result[key]:
                    shares[i] = f"{result['flops'] / seconds / result[key]:.0%}"
            speed = "" if name == "ours" else f"{seconds / ours:.2f}"
            memory = f"{each['peak_device_bytes'] / 1e9:.1f} GB"
            numbers = f"{1e3 * seconds:,.1f}", f"{result['tokens'] / seconds:,.0f}"
            rows.append((result["title"], name, *numbers, *shares, speed, memory))
    return rows


HEADING = (
    "model",
    "system",
    "ms per step",
    "tokens per second",
    "share of the peak",
    "share of a large product",
    "speed of ours",
    "memory",
)


def show(results: dict[str, Any]) -> None:
    table = Table(*HEADING, box=None)
    for row in rows_of(results):
        table.add_row(*row)
    Console(width=140).print(table)


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(GPU_MODELS), help=f"some of {', '.join(GPU_MODELS)}")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each system")
    parser.add_argument("--steps", type=int, default=10, help="number of steps per turn")
    parser.add_argument("--record", action="store_true", help="write results/gpu_speed.json")
    options = parser.parse_args()
    models = options.models.split(",")
    if unknown := set(models) - set(GPU_MODELS):
        parser.error(f"--models: {', '.join(sorted(unknown))} must be among {', '.join(GPU_MODELS)}")
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; on CPUs, use benchmarks.step_speed")
    if any("nanogpt" in GPU_MODELS[model].peers for model in models) and "NANOGPT" not in os.environ:
        parser.error("the environment variable NANOGPT must name the folder of a clone of nanoGPT")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # PyTorch needs the rest of the memory of the GPU
    for model in models:
        results = {model: measure(model, options.rounds, options.steps)}
        show(results)
        if options.record:
            add_results(RECORD, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
