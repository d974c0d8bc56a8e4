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
    splits: dict[str, Any] = {}
    signatures: dict[str, str] = {}
    for path in sorted(newest.glob("results*.json")):
        found = json.loads(path.read_text())
        # results-test-average5-beams5.json: what its name has besides the split is how the split was scored
        options = [part for part in path.stem.split("-")[1:] if part not in found["split"].split("/")]
        key = ", ".join([found["split"], *options])
        splits[key] = found["metrics"]
        signatures |= found.get("signatures", {})
    checkpoints = Checkpoints(run.checkpoints_dir, read_only=True)
    lengths = config.data.sequence_length, config.data.source_length
    record: dict[str, Any] = {
        "name": FLAGS.name,
        "command": FLAGS.command,
        "step": int(newest.name),
        "splits": splits,
        "signatures": signatures,
        "reference": FLAGS.reference,
        "note": FLAGS.note,
        "training_seconds": round(_training_seconds(run)),
        "parameters": _parameters(checkpoints),
        "tokens_trained": int(newest.name) * config.train.batch_size * sum(lengths),
        "data": checkpoints.metadata(checkpoints.steps()[-1])["data"],
        **surroundings(),
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{FLAGS.name}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")
    if run.curves_path.exists():
        shutil.copyfile(run.curves_path, target.with_suffix(".png"))
    print(f"Written: {target}")
    return command.DONE


def _training_seconds(run: RunDirectory) -> float:
    """From the first step to the last line, evaluations included, stops and restarts not."""
    return max(line.get("train/seconds", 0.0) for line in run.read_metrics())


def _parameters(checkpoints: Checkpoints) -> int:
    params, _ = checkpoints.restore_params()
    return count_parameters(params)


def surroundings() -> dict[str, Any]:
    """What every record of a measurement ends with."""
    return {"commit": commit(), "hardware": hardware(), "versions": versions()}


def commit() -> str:
    """Of the code that runs, in short."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return run.stdout.strip() or "unknown"


def hardware() -> str:
    return f"{platform.machine()} {_processor()}, {os.cpu_count()} cores"


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
