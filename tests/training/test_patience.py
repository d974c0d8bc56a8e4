"""Early stopping: when patience is exhausted, and whole runs that end by it or after some minutes."""

import itertools
import json
import math

import pytest

from lm.runs.directory import RunDirectory
from lm.training.loop import is_exhausted
from tests.run_helpers import checkpoints_of, train_here


def better(one: float, other: float, highest_is_best: bool) -> bool:
    if not math.isfinite(one):
        return False
    return not math.isfinite(other) or (one > other if highest_is_best else one < other)


@pytest.mark.parametrize("highest_is_best", [True, False])
@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_patience_matches_its_definition_on_every_short_history(patience, highest_is_best):
    """Patience is exhausted if one earlier evaluation is at least as good as each of the last `patience` ones."""
    for length in range(6):
        for values in itertools.product((0.0, 1.0, 2.0, math.nan, math.inf), repeat=length):
            cut = max(length - patience, 0)
            before, last = values[:cut], values[cut:]
            expected = patience > 0 and any(
                not any(better(each, one, highest_is_best) for each in last) for one in before
            )
            assert is_exhausted(values, patience, highest_is_best) == expected, values


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.exhaustive
def test_run_stops_when_patience_is_exhausted_and_is_not_continued(tiny_pairs, call, tmp_path):
    """A model has learnt too little after six steps for a single exact match."""
    root = tmp_path / "run"
    changes = {
        "eval__every_steps": 2,
        "eval__generation__metrics": "('exact_match',)",
        "eval__generation__max_new_tokens": 8,
        "checkpoint__best_metric": "valid/exact_match",
    }
    message = "Stopped at step 6: valid/exact_match did not improve for 2 evaluations in a row (train.patience)."
    outcome = call("train.py", *tiny_pairs.flags(root, train__patience=2, **changes))
    assert outcome.status == 0, outcome.stderr
    assert message in outcome.stdout
    lines = RunDirectory.existing(root).read_metrics()
    assert [line["step"] for line in lines if "valid/exact_match" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    results = json.loads((root / "eval" / "6" / "results.json").read_text())
    assert results["metrics"]["exact_match"] == 0.0 and results["metrics"]["nll"] > 0
    assert (root / "checkpoints" / "6").is_dir(), "not a step at which checkpoints are saved anyway"

    outcome = call("train.py", *tiny_pairs.flags(root, train__patience=2, **changes))
    assert outcome.status == 0, outcome.stderr
    assert "Already done: step 6 of 40." in outcome.stdout and message in outcome.stdout
    assert RunDirectory.existing(root).read_metrics() == lines


def test_run_stops_when_its_time_is_up_and_is_not_continued(tiny, tmp_path, capsys):
    root, changes = tmp_path / "run", {"train__max_minutes": 1e-5, "log__every_steps": 3, "train__num_steps": 8}
    assert train_here(tiny, root, **changes) == 0
    assert "Stopped at step 3: the run trained for 0.0 minutes (train.max_minutes=1e-05)." in capsys.readouterr().out
    lines = RunDirectory.existing(root).read_metrics()
    assert [line["step"] for line in lines if "valid/loss" in line] == [3] and checkpoints_of(root) == [3]
    assert train_here(tiny, root, **changes) == 0
    assert "Already done: step 3 of 8." in capsys.readouterr().out
    assert RunDirectory.existing(root).read_metrics() == lines
    assert train_here(tiny, root, **changes | {"train__max_minutes": 1.0}) == 0, "more time was given"
    assert checkpoints_of(root)[-1] == 8


def test_time_of_steps_that_were_lost_in_a_kill_counts(tiny, tmp_path, capsys):
    root, changes = tmp_path / "run", {"train__max_minutes": 1.0, "checkpoint__every_steps": 4}
    changes |= {"optimizer__schedule": "constant", "optimizer__warmup_steps": 0}
    assert train_here(tiny, root, **changes, train__num_steps=4) == 0
    run = RunDirectory.existing(root)
    kept = run.read_metrics()
    with run.metrics_path.open("a") as file:
        file.write(json.dumps({"step": 6, "train/loss": 1.0, "train/seconds": 63.0}) + "\n" + '{"step": 7, "tr')
    assert train_here(tiny, root, **changes, train__num_steps=20) == 0
    assert "Stopped at step 4: the run trained for 1.1 minutes" in capsys.readouterr().out
    assert run.read_metrics() == kept
