"""`eval.py --baselines` on runs made here: rows beside the evaluation, files, several runs, and tasks without any."""

import csv
import json
from types import SimpleNamespace

import pytest

from lm.config import Config, defaults, source
from lm.data.reading.readers import Pair
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.evaluation.baselines.baseline import BaselineSetup
from lm.evaluation.baselines.language import BigramBaseline
from lm.runs.baselines import _key
from tests.run_helpers import config_of, save_untrained
from tests.test_predict_command import make_run


def results(root, stem="results"):
    return json.loads((root / "eval" / "1" / f"{stem}.json").read_text())


@pytest.fixture(scope="module")
def labels(tiny_labels, tmp_path_factory):
    """Two runs with the same data."""
    folder = tmp_path_factory.mktemp("baselines")
    for name, changes in (("a", {}), ("b", {"seed": 0})):
        save_untrained(folder / name, config_of(tiny_labels, **changes))
    return folder


def test_baselines_stand_beside_the_run_in_every_format(labels, call):
    outcome = call("eval.py", f"--workdir={labels / 'a'}", "--split=test", "--baselines")
    assert outcome.status == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    names = ["majority class", "n-grams, logistic regression"]
    assert [line.partition(":")[0] for line in lines[:2]] == [f"baseline {name}" for name in names]
    rows = [line for line in lines if " test " in line and "%" in line]
    assert [next(name for name in ("a", *names) if row.startswith(name)) for row in rows] == ["a", *names]
    found = results(labels / "a", "results-test")
    assert list(found["baselines"]) == names
    linear = found["baselines"]["n-grams, logistic regression"]
    assert linear["metrics"]["accuracy"] == 1, "an x or a y in the line is the label"
    assert linear["metrics"].keys() == found["metrics"].keys() - {"task_loss"}
    assert "C=" in linear["signatures"]["n-grams, logistic regression"] and linear["seconds"] > 0
    stem = labels / "a" / "eval" / "1" / "results-test"
    table = list(csv.DictReader(stem.with_suffix(".csv").open()))
    assert [row["run"] for row in table] == ["a", *names] and float(table[2]["accuracy"]) == 1
    assert stem.with_suffix(".md").read_text().count("\n| ") == 4


def test_runs_with_the_same_data_share_their_baselines(labels, call):
    roots = ",".join(str(labels / name) for name in ("a", "b"))
    outcome = call("eval.py", f"--workdir={roots}", "--baselines", "--mean")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.count("baseline majority class: ") == 1
    starts = [line.split("  ")[0] for line in outcome.stdout.splitlines() if " valid " in line and "%" in line]
    assert starts == ["a", "b", "mean of 2", "deviation", "majority class", "n-grams, logistic regression"]
    assert results(labels / "a")["baselines"] == results(labels / "b")["baselines"]


@pytest.mark.exhaustive
def test_runs_with_other_data_have_their_own_baselines(labels, tiny_labels, tmp_path, call):
    save_untrained(tmp_path / "other", config_of(tiny_labels, data__fold=1))
    roots = f"{labels / 'a'},{tmp_path / 'other'}"
    outcome = call("eval.py", f"--workdir={roots}", "--baselines")
    assert outcome.status == 0, outcome.stderr
    assert all(f"majority class (data of {name})" in outcome.stdout for name in ("a", "other"))


def test_baselines_are_shared_only_if_everything_that_they_read_is_equal():
    def setup(*stores, prefix="", reference="x"):
        train, valid, test = ({"s": SimpleNamespace(fingerprint=each)} for each in stores)
        references = {"s": [Pair("a", (reference,))]}
        return BaselineSetup(Config.from_dict({}), None, ByteTokenizer(), train, valid, test, references, {"s": prefix})

    setups = [setup("a", "b", "c"), setup("x", "b", "c"), setup("a", "x", "c"), setup("a", "b", "x")]
    setups += [setup("a", "b", "c", prefix="p: "), setup("a", "b", "c", reference="y")]
    keys = [_key(each, "test") for each in setups]
    assert len(set(keys)) == len(keys) and _key(setup("a", "b", "c"), "test") == keys[0]


def test_a_missing_checkpoint_is_reported_before_baselines_are_fitted(labels, call):
    outcome = call("eval.py", f"--workdir={labels / 'a'}", "--baselines", "--step=7")
    assert outcome.status == 1 and "step 7" in outcome.stderr and "baseline" not in outcome.stdout


@pytest.mark.exhaustive
def test_language_models_are_fitted_to_the_training_split_of_the_run(tiny, tmp_path, call):
    """The text of --text is scored, but the counts still come from the training split."""
    save_untrained(tmp_path / "run", config_of(tiny, optimizer__ema_decay=0.0))
    (tmp_path / "book.txt").write_text("the quick brown fox\n")
    outcome = call("eval.py", f"--workdir={tmp_path / 'run'}", f"--text={tmp_path / 'book.txt'}", "--baselines")
    assert outcome.status == 0, outcome.stderr
    found = results(tmp_path / "run", "results-text-book.txt")
    bigram, xz = found["baselines"][BigramBaseline.name], found["baselines"]["xz -9"]
    assert bigram["metrics"]["loss"] < found["baselines"]["unigram"]["metrics"]["loss"] < found["metrics"]["loss"]
    assert bigram["metrics"]["tokens"] == found["tokens"] == 21 and bigram["metrics"].keys() == found["metrics"].keys()
    assert xz["metrics"].keys() == {"bits_per_byte"} and xz["metrics"]["bits_per_byte"] > 20


@pytest.mark.exhaustive
def test_baselines_that_cannot_be_computed_and_tasks_without_any_say_so(tiny, tmp_path, call, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycrfsuite", None)
    run = make_run(tmp_path / "tags", "tagging", tiny.cache)
    outcome = call("eval.py", f"--workdir={run.root}", "--baselines")
    assert outcome.status == 0, outcome.stderr
    line = "baseline linear CRF: not computed, because python-crfsuite is not installed; run `pip install -r "
    assert line in outcome.stdout and "\nlinear CRF: none: python-crfsuite is not installed" in outcome.stdout
    assert results(run.root)["baselines"]["linear CRF"]["metrics"] == {}
    run = make_run(tmp_path / "questions", "span_qa", tiny.cache)
    outcome = call("eval.py", f"--workdir={run.root}", "--baselines")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.startswith("no baselines: there are none for objective.name=span_qa\n")
    assert "baselines" not in results(run.root)


@pytest.mark.exhaustive
def test_missing_training_data_is_one_line_before_anything_is_scored(tmp_path, tiny, refused):
    values = defaults()
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + "a b\tx\nc d\ty\n" * 9)
        values.data[split].s = source(kind="tsv", path=str(tmp_path / f"{split}.tsv"), label_field="label")
    values.objective.name = "classification"
    values.data.update(cache_dir=str(tiny.cache), sequence_length=16)
    values.data.tokenizer.kind = "bytes"
    values.model.update(family="encoder", num_layers=1, d_model=16, num_heads=2)
    save_untrained(tmp_path / "run", type(config_of(tiny)).from_dict(values.to_dict()))
    (tmp_path / "train.tsv").unlink()
    refused(
        "config.data.train.s: ", "eval.py", f"--workdir={tmp_path / 'run'}", "--baselines", keeping=tmp_path / "run"
    )
