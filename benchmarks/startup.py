"""Measures how long a run takes to start: imports, data, model, compilation and the first step, cold and cached.

    python -m benchmarks.startup [--config=configs/quickstart.py] [--rounds=5] [--name=startup]

Each round starts with an empty cache and runs these commands in turn:

    help    train.py --help
    import  only the imports of train.py
    first   train.py with an empty cache; it receives SIGTERM after its first step, and saves
    again   the same command, which continues the run
    new     the same command with another run directory and the same cache

The table shows the medians of the seconds from the start of the process to the end of each stage, and the processor
seconds of all threads until then, which depend less on other processes. A stage ends when train.py prints its line, or,
for the first step, writes its metrics. `compiled` is the number of programs that the command added to the compile cache
until its first step (for the first start, until its end). With --name, a record is written to results/NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import RESULTS, surroundings, write_record

ROOT = RESULTS.parent
IMPORTS = "import lm.parallel.distributed, lm.runs.repeats, lm.runs.compile_cache, lm.training.loop"
# Stages of train.py, and the start of the line that it prints at the end of each.
LINES = {"imports": "--- Data", "data": "--- Model", "state": "--- Training", "compilation": "Compiled the step"}
STAGES = (*LINES, "first step")
SECONDS_AT_MOST = 1800.0
Times = dict[str, dict[str, float]]  # stage -> {"wall": seconds, "cpu": seconds}, both since the start


class Command:
    """A running command whose stages are timed."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment | {"LM_CACHE_DIR": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.times: Times = {}
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.append(line)
            for stage, start in LINES.items():
                if line.startswith(start):
                    self.end(stage)

    def end(self, stage: str) -> None:
        """Records the end of a stage, at the first call for this stage."""
        cpu = float("nan")
        with contextlib.suppress(OSError):  # /proc exists only on Linux
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.times.setdefault(stage, {"wall": time.monotonic() - self._began, "cpu": cpu})

    def wait_for_step(self, workdir: Path) -> None:
        """Waits until the command has written the metrics of a step to the run directory."""
        path, before = workdir / "metrics.jsonl", count_lines(workdir / "metrics.jsonl")
        while count_lines(path) <= before:
            if self.process.poll() is not None or time.monotonic() - self._began > SECONDS_AT_MOST:
                self.kill()
                raise SystemExit(f"train.py took no step:\n{''.join(self._lines)}")
            time.sleep(0.005)
        self.end("first step")

    def wait(self, *statuses: int) -> None:
        """Waits for the end of the command. Raises SystemExit if its exit status is none of `statuses`."""
        status = self.process.wait(SECONDS_AT_MOST)
        self._reader.join()
        if status not in statuses:
            raise SystemExit(f"the command failed:\n{''.join(self._lines)}")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_to_end(arguments: list[str], cache: Path) -> Times:
    """Runs a command to its end. Returns its wall and processor time as those of a single stage."""
    began, before = time.monotonic(), os.times()
    command = Command(arguments, cache)
    command.wait(0)
    wall, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"end": {"wall": wall, "cpu": cpu}}


def run_round(config: str) -> dict[str, Any]:
    """Measures each command once. Returns its times, and the number of programs that it compiled."""
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        measured["help"] = run_to_end(["train.py", "--help"], cache)
        measured["import"] = run_to_end(["-c", IMPORTS], cache)
        known: set[str] = set()
        for name, run in (("first", "a"), ("again", "a"), ("new", "b")):
            workdir = Path(folder) / run
            # With log.every_steps=1, the first step of a continued run is written at once.
            flags = [f"--config={config}", f"--workdir={workdir}", "--config.log.every_steps=1"]
            command = Command(["train.py", *flags], cache)
            command.wait_for_step(workdir)
            if name == "first":
                command.process.terminate()
                command.wait(75)
            else:
                command.kill()
            programs = {path.name for path in (cache / "xla").glob("*-cache")}
            measured[name] = command.times | {"compiled": len(programs - known)}
            known |= programs
    return measured


def medians(rounds: list[Any]) -> Any:
    """Returns the median of each value of the rounds, which are numbers or nested dicts with equal keys."""
    first = rounds[0]
    if isinstance(first, dict):
        return {name: medians([each[name] for each in rounds]) for name in first}
    return round(statistics.median(rounds), 3)


def table_of(result: dict[str, Any]) -> Table:
    table = Table(title="Seconds since the start (processor seconds)", box=None, padding=(0, 2, 0, 0))
    for name in ("command", *STAGES, "compiled"):
        table.add_column(name, justify="left" if name == "command" else "right")
    for command, times in result.items():
        cells = [f"{times[s]['wall']:.2f} ({times[s]['cpu']:.2f})" if s in times else "" for s in STAGES]
        if "end" in times:
            cells[0] = f"{times['end']['wall']:.2f} ({times['end']['cpu']:.2f})"
        table.add_row(command, *cells, str(times.get("compiled", "")))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_to_end(["-c", IMPORTS], Path(folder))  # writes the bytecode of all modules
    rounds = []
    for number in range(options.rounds):
        rounds.append(run_round(options.config))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    result = medians(rounds)
    Console().print(table_of(result))
    if options.name:
        record = {"name": options.name, "note": options.note, "config": options.config, "rounds": options.rounds}
        record |= {"medians": result, "each_round": rounds, **surroundings()}
        write_record(RESULTS / f"{options.name}.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
