"""Several seeds or folds in one command have names of their own, differ, and share one table."""

import csv
import json
import re
import statistics

import pytest

from lm.data.tokenizing.bytes import ByteTokenizer
from lm.errors import UserError
from lm.runs.prepare import prepare_split
from lm.runs.repeats import repetitions, train_all
from lm.tasks import TASKS
from lm.tasks.task import Tokenizers
from tests.run_helpers import config_of

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


def names_and_settings(config, seeds, folds):
    return {name: (each.seed, each.data.fold) for name, each in repetitions(config, seeds, folds).items()}


def test_repetitions_are_named_by_seed_and_fold(tiny_labels):
    config = config_of(tiny_labels, seed=7, data__fold=2)
    assert names_and_settings(config, [3, 0], 0) == {"seed_3": (3, 2), "seed_0": (0, 2)}
    assert names_and_settings(config, [], 3) == {"fold_0": (7, 0), "fold_1": (7, 1), "fold_2": (7, 2)}
    assert names_and_settings(config, [5, 6], 2) == {
        f"seed_{seed}_fold_{fold}": (seed, fold) for seed in (5, 6) for fold in (0, 1)
    }
    for each in repetitions(config, [5], 2).values():
        values = each.to_dict()
        values["seed"], values["data"]["fold"] = 7, 2
        assert values == config.to_dict(), "nothing else differs"


@pytest.mark.parametrize(
    ("seeds", "folds", "message"),
    [
        ([1, 1], 0, r"--seeds=1,1: seeds must be distinct"),
        ([-1], 0, r"--seeds=-1: seeds must be distinct and in the range 0 to 4294967294"),
        ([], 5, r"--folds=5: the config has 4 folds \(data\.folds\)"),
        ([], -1, r"--folds=-1: the config has 4"),
        ([0], 1, r"--folds=1: the number must be at least 2"),
    ],
)
def test_impossible_repetitions_are_refused(tiny_labels, seeds, folds, message):
    with pytest.raises(UserError, match=message):
        repetitions(config_of(tiny_labels), seeds, folds)


def table_lines(text):
    return [line for line in text.splitlines() if line.startswith(("seed_", "mean of", "deviation"))]


@pytest.mark.exhaustive
def test_seeds_are_trained_and_compared_in_one_table(tiny_labels, call, tmp_path):
    root = tmp_path / "seeds"
    outcome = call("train.py", *tiny_labels.flags(root), "--seeds=0,1")
    assert outcome.status == 0, outcome.stderr
    assert sorted(path.name for path in root.iterdir()) == ["results.csv", "results.md", "seed_0", "seed_1"]

    metrics = []
    for name in ("seed_0", "seed_1"):
        (path,) = (root / name).glob("eval/*/results-test.json")
        metrics.append(json.loads(path.read_text())["metrics"])
        assert path.with_name("predictions-test.jsonl").exists()
    assert metrics[0]["task_loss"] != metrics[1]["task_loss"], "the seeds differ"
    with (root / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["seed_0", "seed_1", "mean of 2", "deviation"]
    assert {row["split"] for row in rows} == {"test"}
    for metric in ("task_loss", *TASKS["classification"].metrics(None)[1:]):
        values = [each[metric] for each in metrics]
        found = [float(row[metric]) for row in rows]
        assert found == pytest.approx([*values, statistics.mean(values), statistics.stdev(values)], abs=1e-12)
    assert "| mean of 2 |" in (root / "results.md").read_text()

    # eval.py makes the same table of the same runs.
    runs = f"--workdir={root / 'seed_0'},{root / 'seed_1'}"
    again = call("eval.py", runs, "--split=test", "--mean")
    assert again.status == 0, again.stderr
    lines = table_lines(again.stdout)
    assert [line.split("  ")[0] for line in lines[-4:]] == ["seed_0", "seed_1", "mean of 2", "deviation"]
    assert lines[-4:] == table_lines(outcome.stdout)[-4:]
    assert re.search(
        r"seed_0: step \d+ \(best valid/accuracy\), test, \d+ examples in \d+ rows, on 8 x cpu", again.stdout
    )
    alone = call("eval.py", runs, "--split=test")
    assert "mean" not in alone.stdout and "deviation" not in alone.stdout

    # The directory of one run cannot hold several.
    refused = call("train.py", *tiny_labels.flags(root / "seed_0"), "--seeds=2,3")
    assert refused.status == 1 and "seed_0 already holds a single run" in refused.stderr
    assert not (root / "seed_0" / "seed_2").exists()


def test_folds_are_tested_on_different_examples(tiny_labels):
    tested, texts = [], tiny_labels.text.read_text().splitlines()[1:]
    for config in repetitions(config_of(tiny_labels), [], 4).values():
        found = {
            split: prepare_split(config, Tokenizers(ByteTokenizer(), ByteTokenizer()), split)["lines"].raw
            for split in ("train", "valid", "test")
        }
        sets = [{example.text for example in examples} for examples in found.values()]
        assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
        tested += [f"{example.text}\t{example.label}" for example in found["test"]]
        assert len(found["test"]) > 30
    assert sorted(tested) == sorted(texts), "over all folds each example is tested once"


def test_signal_ends_all_repetitions(tiny_labels, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "lm.runs.repeats.train", lambda config, root: seen.append(root.name) or (75 if len(seen) > 1 else 0)
    )
    assert train_all(repetitions(config_of(tiny_labels), [4, 5, 6], 0), tmp_path) == 75
    assert seen == ["seed_4", "seed_5"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seeds=0,one", "--seeds: 'one' is not a number; separate numbers with commas, e.g. --seeds=0,1,2."),
        ("--seeds=2,2", "--seeds=2,2: seeds must be distinct"),
        ("--folds=9", "--folds=9: the config has 4"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_written(tiny_labels, call, tmp_path, flag, message):
    outcome = call("train.py", *tiny_labels.flags(tmp_path / "run"), flag)
    assert outcome.status == 1 and message in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
