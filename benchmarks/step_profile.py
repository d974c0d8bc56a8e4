"""Shows where the time of our training step goes, by kinds of operations, on a CPU.

    python -m benchmarks.step_profile [--models=gpt,t5] [--dtypes=float32,bfloat16] [--record]

The step is that of benchmarks/step_speed.py. The table adds up the time that each kind of operation takes, as JAX's
profiler records it. The sum exceeds the time of the step where operations run side by side; a product that uses all
cores counts once. The profiler itself costs some time. With --record, the figures are written to
results/step_profile.json. Nothing else should run at the same time.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData
from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, add_results, surroundings
from benchmarks.step_models import MODELS, write_folder
from benchmarks.step_systems import our_program
from lm.runs.huge_pages import restart_with_huge_pages
from lm.training.program import computations

WARM_UP = 2
# Kinds of operations, by the first pattern that is found in the name that JAX gives an operation of the program.
KINDS = {
    "attention": r"_attend",
    "products of the backward pass": r"transpose\(jvp.*dot_general",
    "products of the forward pass": r"dot_general",
    "norms": r"norm",
    "other operations of the model": r"jvp",
    "clipping and optimizer": r"train_step",
}
UNNAMED = "copies and conversions that XLA adds"


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), UNNAMED)


def seconds_by_kind(folder: Path, program: str) -> dict[str, float]:
    """Returns the time that each kind of operation takes."""
    names = {}
    for body in computations(program).values():
        for each in body.values():
            if each.operation not in ("while", "call", "conditional"):  # their operations are recorded as well
                found = re.search(r'op_name="([^"]*)"', each.rest)
                names[each.name] = found[1] if found else ""
    total: Counter[str] = Counter()
    for name, seconds in events(folder):
        if name in names:
            total[kind_of(names[name])] += seconds
    return dict(total)


def events(folder: Path) -> Iterator[tuple[str, float]]:
    (path,) = folder.rglob("*.xplane.pb")
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                yield event.name, event.duration_ns / 1e9


def profile(model: str, dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_folder(MODELS[model], folder)
        program, step = our_program(MODELS[model], dtype, folder)
        batches = MODELS[model].arrays()
        for _ in range(WARM_UP):
            step(next(batches))
        with jax.profiler.trace(str(folder / "trace")):
            began = time.perf_counter()
            step(next(batches))
            seconds = time.perf_counter() - began
        kinds = seconds_by_kind(folder / "trace", program.as_text())
    return {"seconds": seconds, "seconds_by_kind": kinds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt,t5", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="float32, bfloat16 or both")
    parser.add_argument("--record", action="store_true", help="write results/step_profile.json")
    options = parser.parse_args()
    restart_with_huge_pages()  # as train.py does
    results = {}
    for model in options.models.split(","):
        dtypes = {dtype: profile(model, dtype) for dtype in options.dtypes.split(",")}
        results[model] = {"title": MODELS[model].title, "dtypes": dtypes, **surroundings()}
        table = Table(f"kind of operation ({model})", *(f"{dtype}, ms" for dtype in dtypes), box=None)
        for kind in (*KINDS, UNNAMED):
            table.add_row(kind, *(f"{1e3 * each['seconds_by_kind'].get(kind, 0):.0f}" for each in dtypes.values()))
        table.add_row("time of the step", *(f"{1e3 * each['seconds']:.0f}" for each in dtypes.values()))
        Console(width=110).print(table)
    if options.record:
        add_results(RESULTS / "step_profile.json", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
