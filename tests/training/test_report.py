"""The end of a run: the results of the last step and of the best."""

import json

from tests.run_helpers import metrics, train_here


def results_of(root):
    return {int(path.parent.name): json.loads(path.read_text())["metrics"] for path in root.glob("eval/*/results.json")}


def test_the_last_step_and_the_best_are_both_named_and_evaluated(tiny_labels, tmp_path, capsys):
    root = tmp_path / "run"
    changes = {"train__num_steps": 8, "eval__every_steps": 2, "checkpoint__every_steps": 2, "optimizer__ema_decay": 0.0}
    changes |= {"checkpoint__best_metric": "valid/loss", "optimizer__warmup_steps": 0}
    assert train_here(tiny_labels, root, **changes, optimizer__learning_rate=0.3) == 0
    losses = {line["step"]: line["valid/loss"] for line in metrics(root) if "valid/loss" in line}
    best = min(losses, key=losses.get)
    assert best != 8, "otherwise this test checks nothing"
    out = capsys.readouterr().out
    assert f"Step 8 is the last; step {best} has the best valid/loss, so eval.py" in " ".join(out.split())
    found = results_of(root)
    assert sorted(found) == sorted([best, 8])
    assert {step: each["task_loss"] for step, each in found.items()} == {step: losses[step] for step in found}
    rows = [line.split()[1] for line in out.splitlines() if line.startswith("run ") and " valid " in line]
    assert rows == ["8", str(best)]


def test_a_last_step_that_is_the_best_is_named_so(tiny_labels, tmp_path, capsys):
    changes = {"train__num_steps": 2, "eval__every_steps": 2, "optimizer__warmup_steps": 0}
    assert train_here(tiny_labels, tmp_path / "run", **changes) == 0
    out = capsys.readouterr().out
    assert "Step 2 is the last and has the best valid/accuracy." in out and sorted(results_of(tmp_path / "run")) == [2]
    text, predicted, label = (
        next(line for line in out.splitlines() if line.lstrip().startswith(f"{name}: "))
        for name in ("text", "predicted", "label")
    )
    assert predicted.strip().removeprefix("predicted: ") in ("is_x", "is_y") and "is_" in label and len(text) > 12
