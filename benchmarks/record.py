"""Records the results of a finished run in results/: a small JSON file and the training curves.

    python -m benchmarks.record --workdir=runs/quickstart --name=quickstart --command="make train" [--note="..."]

Run `python -m benchmarks.table` afterwards to add the record to README.md. The record contains the metrics of every
split that eval.py has written for the latest evaluated step, and the information needed to interpret them: commit,
hardware, versions, hashes of the data, steps and training time. For the runs of `train.py --seeds` or `--folds`, the
record contains the test metrics of each run with their mean and standard deviation; all its other entries describe the
first run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from absl import flags

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import command
from lm.errors import UserError
from lm.models import MODELS
from lm.models.parameters import count_parameters
from lm.reporting.curves import draw_curves
from lm.reporting.table import Result, with_means
from lm.runs.directory import RunDirectory
from lm.tasks import task_of
from lm.training.startup import versions

RESULTS = Path(__file__).parents[1] / "results"

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_string("name", None, "Name of the record, written to results/NAME.json.")
    flags.DEFINE_string("command", "", "The command that created the run, without data paths.")
    flags.DEFINE_string("reference", "", "A published result to compare with, and its source.")
    flags.DEFINE_string(
        "note", "", "Remarks for the reader, for example where the result falls short of the reference."
    )


def repeated_results(root: Path) -> list[Result]:
    """Returns the test result of each run that train.py --seeds or --folds created below `root`.

    Raises UserError if there is no such run.
    """
    found = []
    for directory in sorted(each for each in root.glob("*_*") if (each / "config.json").exists()):
        paths = sorted(directory.glob("eval/*/results-test.json"))
        if not paths:
            raise UserError(f"{directory}: has no results on the test split; run train.py --seeds or --folds again.")
        values = json.loads(paths[-1].read_text())
        found.append(Result(directory.name, values["step"], "test", values["metrics"], values["rows"], None, None, 0.0))
    if not found:
        raise UserError(
            f"{root}: there are no runs seed_0, ... or fold_0, ...; create them with train.py --seeds=0,1,2."
        )
    return found


def main() -> int:
    if not FLAGS.workdir or not FLAGS.name:
        raise UserError("--workdir and --name are needed (see --help).")
    root = Path(FLAGS.workdir)
    repeated = [] if (root / "config.json").exists() else repeated_results(root)
    run = RunDirectory.existing(root / repeated[0].run if repeated else root)
    config = run.load_config()
    evaluated = sorted((run.root / "eval").glob("*/results*.json"), key=lambda path: int(path.parent.name))
    if not evaluated:
        raise UserError(f"{run.root}: has no evaluations yet; run eval.py --workdir={run.root} first.")
    newest = evaluated[-1].parent
    splits: dict[str, Any] = {}
    signatures: dict[str, str] = {}
    for path in sorted(newest.glob("results*.json")):
        found = json.loads(path.read_text())
        # In results-test-average5-beams5.json, the parts after the split describe how it was scored.
        options = [part for part in path.stem.split("-")[1:] if part not in found["split"].split("/")]
        key = ", ".join([found["split"], *options])
        splits[key] = found["metrics"]
        signatures |= found.get("signatures", {})
    if repeated:
        mean, deviation = with_means(repeated)[-2:]
        splits = {f"test, {each.run}": each.metrics for each in (mean, deviation)}
    checkpoints = run.open_checkpoints(config)
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
        "tokens_trained": _tokens_fitted(run) or int(newest.name) * config.train.batch_size * sum(lengths),
        **({"runs": {each.run: each.metrics for each in repeated}} if repeated else {}),
        "data": checkpoints.record(checkpoints.steps()[-1])["metadata"]["data"],
        **surroundings(),
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{FLAGS.name}.json"
    if run.curves_path.exists():  # drawn anew, since the run directory may have another name, such as seed_0
        loss, best = task_of(config).loss_name, config.checkpoint.best_metric
        draw_curves(run.read_metrics(), target.with_suffix(".png"), FLAGS.name, loss, best)
    write_record(target, record)
    return command.DONE


def _training_seconds(run: RunDirectory) -> float:
    """Returns the seconds from the first step to the last record, including evaluations but not interruptions."""
    return max(line.get("train/seconds", 0.0) for line in run.read_metrics())


def _tokens_fitted(run: RunDirectory) -> int:
    """Returns the number of training tokens of a model that was fitted without gradients, and 0 for other models."""
    if MODELS[run.load_config().model.architecture].fit is None:
        return 0
    return int(max(line.get("train/tokens", 0) for line in run.read_metrics()))


def _parameters(checkpoints: Checkpoints) -> int:
    params, _ = checkpoints.restore_params()
    return count_parameters(params)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file and prints its path."""
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Written: {path}")


def add_results(path: Path, results: dict[str, Any]) -> None:
    """Adds results to those in a JSON file, and replaces those that have the same names."""
    kept = json.loads(path.read_text())["results"] if path.exists() else {}
    write_record(path, {"results": kept | results})


def surroundings() -> dict[str, Any]:
    """Returns the entries that describe the environment of a measurement, for the end of every record."""
    return {"commit": commit(), "hardware": hardware(), "versions": versions()}


def commit(folder: Path = RESULTS.parent) -> str:
    """Returns the short hash of the commit that is checked out in a folder, by default that of the running code."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=folder)
    return run.stdout.strip() or "unknown"


def hardware() -> str:
    accelerators = Counter(device.device_kind for device in jax.devices() if device.platform != "cpu")
    host = f"{platform.machine()} {_processor()}, {os.cpu_count()} cores"
    return ", ".join([*(f"{count} x {kind}" for kind, count in accelerators.items()), host])


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
