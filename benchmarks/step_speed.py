"""Compares the speed and the memory of our training step with PyTorch's, on the same machine in the same run.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.step_speed [--models=gpt,bert] [--dtypes=float32,bfloat16] [--record]

Each system runs in a process of its own (benchmarks/step_systems.py) with the same initial weights and the same
batches; the losses of the first steps must agree. The systems take turns, in alternating order, and the medians are
reported. bfloat16 means model.dtype for ours, whose activations are float32 on a CPU, and autocast for PyTorch. With
--record, the measurements of each model and dtype are written to results/step_speed.json; those of others are kept.

Nothing else should run at the same time. OMP_NUM_THREADS sets the number of PyTorch threads. For GPUs, there is
benchmarks/gpu_speed.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, add_results, surroundings
from benchmarks.step_models import MODELS, write_folder
from benchmarks.step_systems import SYSTEMS

RECORD = RESULTS / "step_speed.json"
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-3}  # of the losses, relative


class System:
    """A system in its own process, which has taken its first steps once the constructor returns."""

    def __init__(self, name: str, model: str, dtype: str, folder: Path) -> None:
        self.name, self.times = name, list[float]()
        command = [sys.executable, "-m", "benchmarks.step_systems", name, model, dtype, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with status {self._process.wait()}")

    def run(self, steps: int) -> None:
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        answer = self._read()
        self.times.append(answer["seconds"])
        self.peak, self.device_peak = answer["peak_rss_bytes"], answer["peak_device_bytes"]

    def close(self) -> None:
        self._process.communicate()


def agreeing_losses(systems: list[System], model: str, dtype: str) -> dict[str, list[float]]:
    """Returns the losses of the first steps of each system. Ends the program if they differ."""
    losses = {each.name: each.first["losses"] for each in systems}
    wanted = next(iter(losses.values()))
    for name, found in losses.items():
        if not all(abs(x - y) <= TOLERANCES[dtype] * y for x, y in zip(found, wanted, strict=True)):
            raise SystemExit(f"{model}, {dtype}: the losses of {name} differ from those of the first system: {losses}")
    return losses


def take_turns(systems: list[System], rounds: int, steps: int) -> None:
    """Times the systems in turn, in alternating order, and ends their processes."""
    for turn in range(rounds):
        for each in systems[:: 1 if turn % 2 else -1]:
            each.run(steps)
    for each in systems:
        each.close()


def compare(model: str, dtype: str, names: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Returns the measurements of a model: of each system, and the ratios to ours."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(MODELS[model], Path(folder))
        systems = [System(name, model, dtype, Path(folder)) for name in names]
        losses = agreeing_losses(systems, model, dtype)
        take_turns(systems, rounds, steps)
    measured = {
        each.name: {
            "seconds_per_step": statistics.median(each.times),
            "times": each.times,
            "first_seconds": each.first["first_seconds"],
            "peak_rss_bytes": each.peak,
        }
        for each in systems
    }
    return {"losses": losses, "systems": measured}


def show(results: dict[str, Any]) -> None:
    table = Table("model", "dtype", "system", "ms/step", "speed of ours", "peak RSS", "ours / theirs", box=None)
    for key, result in results.items():
        model, dtype = key.split(", ")
        ours = result["systems"]["ours"]
        for name, each in result["systems"].items():
            speed, memory = (
                each["seconds_per_step"] / ours["seconds_per_step"],
                ours["peak_rss_bytes"] / each["peak_rss_bytes"],
            )
            relative = ("-", "-") if name == "ours" else (f"{speed:.2f}", f"{memory:.2f}")
            size = f"{each['peak_rss_bytes'] / 1e9:.2f} GB"
            table.add_row(model, dtype, name, f"{1e3 * each['seconds_per_step']:.0f}", relative[0], size, relative[1])
    Console(width=120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="float32, bfloat16 or both")
    parser.add_argument("--systems", default="ours,pytorch", help=f"some of {'; '.join(SYSTEMS)}, separated by ','")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each system")
    parser.add_argument("--steps", type=int, default=3, help="number of steps per turn")
    parser.add_argument("--record", action="store_true", help="write results/step_speed.json")
    options = parser.parse_args()
    results = {}
    for model in options.models.split(","):
        for dtype in options.dtypes.split(","):
            found = compare(model, dtype, options.systems.split(","), options.rounds, options.steps)
            results[f"{model}, {dtype}"] = {"title": MODELS[model].title, **found, **surroundings()}
            show(results)
    if options.record:
        add_results(RECORD, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
