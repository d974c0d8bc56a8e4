"""Records what a finished run measured: one small JSON file in results/, and its curves.

    python -m benchmarks.record --workdir=runs/quickstart --name=quickstart --command="make train" [--note="..."]

Then `python -m benchmarks.table` puts it into README.md. The record holds the figures of every split that eval.py
has written for the newest evaluated step, and all that is needed to read them: config differences from the shipped
one, commit, hardware, versions, data hashes, steps and training time.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from absl import flags

from lm import command
from lm.checkpoint import Checkpoints
from lm.errors import UserError
from lm.models.transformer import count_parameters
from lm.run_directory import RunDirectory
from lm.training.startup import versions

RESULTS = Path(__file__).parents[1] / "results"

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_string("name", None, "Name of the record, results/NAME.json.")
    flags.DEFINE_string("command", "", "The command that made the run, with data paths left out.")
    flags.DEFINE_string("reference", "", "A published figure to compare with, and its source.")
    flags.DEFINE_string("note", "", "What a reader has to know: what fell short, how long it really took.")


def main() -> int:
    if not FLAGS.workdir or not FLAGS.name:
        raise UserError("--workdir and --name are needed (see --help).")
    run = RunDirectory.existing(Path(FLAGS.workdir))
    config = run.load_config()
    evaluated = sorted((run.root / "eval").glob("*/results*.json"), key=lambda path: int(path.parent.name))
    if not evaluated:
        raise UserError(f"{run.root}: nothing was evaluated yet; run eval.py --workdir={run.root} first.")
    newest = evaluated[-1].parent
    splits = {}
    for path in sorted(newest.glob("results*.json")):
        found = json.loads(path.read_text())
        key = (
            found["split"]
            if found["stride"] == found["sequence_length"]
            else f"{found['split']}, stride {found['stride']}"
        )
        splits[key] = found["metrics"]
    checkpoints = Checkpoints(run.checkpoints_dir, read_only=True)
    record: dict[str, Any] = {
        "name": FLAGS.name,
        "command": FLAGS.command,
        "step": int(newest.name),
        "splits": splits,
        "reference": FLAGS.reference,
        "note": FLAGS.note,
        "training_seconds": round(_training_seconds(run)),
        "parameters": _parameters(checkpoints),
        "tokens_trained": config.train.batch_size * config.data.sequence_length * int(newest.name),
        "data": checkpoints.metadata(checkpoints.steps()[-1])["data"],
        "commit": _commit(),
        "hardware": f"{platform.machine()} {_processor()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{FLAGS.name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    if run.curves_path.exists():
        shutil.copyfile(run.curves_path, target.with_suffix(".png"))
    print(f"Written: {target}")
    return command.DONE


def _training_seconds(run: RunDirectory) -> float:
    """Time in training steps: for each log line, the tokens since the one before by their speed."""
    seconds, before = 0.0, 0
    config = run.load_config()
    tokens = config.train.batch_size * config.data.sequence_length
    for line in run.read_metrics():
        speed = line.get("train/tokens_per_second")
        if speed:
            seconds += (line["step"] - before) * tokens / speed
            before = line["step"]
    return seconds


def _parameters(checkpoints: Checkpoints) -> int:
    params, _ = checkpoints.restore_params()
    return count_parameters(params)


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return run.stdout.strip() or "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == "__main__":
    define_flags()
    command.run(main)
