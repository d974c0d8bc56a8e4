"""`python -m lm.compare`: its bootstrap against sacrebleu's and a closed form, and bad input."""

import json
import random
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from absl import flags

from lm import compare
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.data.reading.readers import Labelled
from lm.errors import UserError
from lm.evaluation.predictions import Example, write_predictions
from lm.evaluation.text_metrics import percentages
from lm.runs.directory import RunDirectory
from lm.tasks.classification import Classified

WORDS = "a quick brown fox jumps over the lazy dog while seven wizards brew".split()


def system(errors, size=60, seed=0):
    """Returns outputs with a fraction `errors` of wrong words; references are the same for all seeds."""
    texts, draw = random.Random(1), random.Random(seed + 100)
    examples = []
    for number in range(size):
        words = texts.choices(WORDS, k=texts.randint(4, 12))
        made = [draw.choice(WORDS) if draw.random() < errors else word for word in words]
        examples.append(Example(f"source {number}", (" ".join(words),), " ".join(made), -1.0))
    return examples


@pytest.fixture
def command(capsys):
    """Returns a function that runs the command in this process and returns its output."""
    before = set(flags.FLAGS)
    compare.define_flags()

    def call(*arguments):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["compare", *map(str, arguments)])
        assert compare.main() == 0
        return capsys.readouterr().out

    yield call
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    for name, errors, seed in (("bad", 0.5, 1), ("good", 0.1, 2), ("good2", 0.1, 3)):
        write_predictions(folder / f"{name}.jsonl", system(errors, seed=seed))
    return folder


def rows(text):
    """Returns (system, score, mean, half width, p) of each row of the table."""
    found = re.findall(r"(\S+)\s+([\d.]+)\s+([\d.]+) ± ([\d.]+)[ ]*([\d.]*)", text)
    return [(name, *(float(each) if each else None for each in numbers)) for name, *numbers in found]


def test_p_value_separates_a_worse_system_from_an_equal_one(command, files):
    paths = [files / f"{name}.jsonl" for name in ("good", "bad", "good2")]
    text = command(f"--predictions={','.join(map(str, paths))}", "--samples=200")
    assert text.startswith(f"60 examples, 200 resamples; p-values relative to {paths[0]}\n")
    (first, score, mean, width, none), (_, worse, *_, p_bad), (_, near, *_, p_near) = rows(text)
    assert first == str(paths[0]) and none is None and worse < score and abs(near - score) < 8
    assert abs(mean - score) < 3 and 0 < width < 15
    assert p_bad == round(1 / 201, 4) and p_near > 0.05
    assert re.search(r"\nbleu: nrefs:1\|bs:200\|seed:12345\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:", text)


def test_several_metrics_share_the_table_and_the_seed(command, files):
    arguments = (f"--predictions={files / 'good.jsonl'},{files / 'bad.jsonl'}", "--samples=50")
    text = command(*arguments, "--metric=bleu,chrf,ter,rouge,exact_match,wer")
    names = ("BLEU", "chrF", "TER", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "exact match", "WER")
    assert [line.split("  ")[0] for line in text.splitlines() if line.startswith(names)] == list(names)
    assert len(rows(text)) == 18 and "wer: tok:space|bs:50|seed:12345" in text
    assert command(*arguments, "--metric=wer") == command(*arguments, "--metric=wer")
    other = command(*arguments, "--metric=bleu,wer", "--seed=1")
    assert "seed:1|" in other and rows(other)[0][1] == rows(text)[0][1] and rows(other)[0][2:] != rows(text)[0][2:]
    assert "tok:char" in command(*arguments, "--bleu_tokenize=char")


def bootstrap(counts, samples, seed):
    """Returns the comparison of systems by the ratio of the sums of two counts, (examples, 2) for each system."""
    systems = [partial(percentages, {"ratio": each}) for each in counts]
    return compare.bootstrap(systems, len(counts[0]), samples, seed)["ratio"]


def test_bootstrap_matches_sacrebleu():
    """TER is also edits over words, so both can use its counts of sentences."""
    systems = [system(errors, seed=seed) for seed, errors in enumerate((0.3, 0.33, 0.5))]
    found, _ = compare.compare("ter", systems, bleu_tokenize="13a", samples=300, seed=5)
    scorer = compare.TEXT_METRICS["ter"].scorer("13a")
    references = compare.reference_streams([each.references for each in systems[0]])
    predictions = [[each.prediction for each in examples] for examples in systems]
    counts = [np.array(scorer._extract_corpus_statistics(texts, references)) for texts in predictions]
    ours = bootstrap(counts, samples=300, seed=5)
    for mine, theirs in zip(ours, found["ter"], strict=True):
        assert mine.score == pytest.approx(theirs.score, rel=1e-5)
        assert mine.mean == pytest.approx(theirs.mean, rel=1e-5)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-4)
        assert mine.p_value == theirs.p_value
    assert ours[1].p_value > 0.02 > ours[2].p_value == pytest.approx(1 / 301)


@pytest.mark.parametrize("metric", ["bleu", "exact_match"])
def test_copy_of_a_system_does_not_differ_significantly(metric):
    found, _ = compare.compare(metric, [system(0.1)] * 2, bleu_tokenize="13a", samples=40, seed=1)
    first, copy = found[metric]
    assert (copy.score, copy.mean, copy.interval) == (first.score, first.mean, first.interval)
    assert first.p_value is None and copy.p_value == 1


def test_interval_matches_a_binomial_distribution():
    """Exact match: 95 % of the resampled rates lie within 1.96 standard errors."""
    counts = np.stack([np.arange(400) % 4 == 0, np.ones(400)], axis=1).astype(float)
    (found,) = bootstrap([counts], samples=2000, seed=3)
    error = 100 * (0.25 * 0.75 / 400) ** 0.5
    assert found.score == 25 and found.mean == pytest.approx(25, abs=0.2)
    assert found.interval == pytest.approx(1.96 * error, rel=0.08)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the folder of two runs without checkpoints, with predictions of steps 4 and 9 and BLEU of characters."""
    folder = tmp_path_factory.mktemp("runs")
    values = {
        "data": {"train": {"pairs": {"path": "x", "target_path": "y", "document": "line"}}},
        "objective": {"name": "seq2seq"},
        "model": {"family": "encoder_decoder"},
        "eval": {"generation": {"bleu_tokenize": "char"}},
    }
    for number, name in enumerate(("one", "two")):
        with RunDirectory.open(folder / name, Config.from_dict(values)) as directory:
            for step in (4, 9):
                write_predictions(directory.eval_dir(step) / compare.FILE, system(1 / step, seed=number))
    return folder


def test_step_selects_the_predictions_of_runs(command, runs):
    roots = f"--workdir={runs / 'one'},{runs / 'two'}"
    by_step = {step: command(roots, f"--step={step}", "--samples=20") for step in ("best", "latest", "4", "9")}
    assert by_step["best"] == by_step["latest"] == by_step["9"] != by_step["4"]
    assert "tok:char" in by_step["4"] and str(runs / "two") in by_step["4"]


def test_best_step_is_that_of_the_checkpoints(command, runs, monkeypatch):
    monkeypatch.setattr(Checkpoints, "best", lambda self: 4)
    assert compare.predictions_of(runs / "one", "best") == runs / "one" / "eval" / "4" / compare.FILE
    monkeypatch.setattr(Checkpoints, "best", lambda self: 7)
    with pytest.raises(UserError, match=r"for step 7 \(best\), only for 4, 9"):
        compare.predictions_of(runs / "one", "best")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": 1}, "example 3: its source differs from that in"),
        ({"references": 1}, "example 3: its reference differs from that in"),
        ({"fewer": 1}, "has 59 examples, but .* has 60"),
    ],
)
def test_systems_with_different_examples_are_refused(command, files, tmp_path, changes, message):
    examples = system(0.2)
    third = examples[2]
    if "sources" in changes:
        examples[2] = Example("other", third.references, third.prediction, third.score)
    elif "references" in changes:
        examples[2] = Example(third.source, (*third.references, "more"), third.prediction, third.score)
    else:
        del examples[-1]
    write_predictions(tmp_path / "other.jsonl", examples)
    with pytest.raises(UserError, match=message):
        command(f"--predictions={files / 'good.jsonl'},{tmp_path / 'other.jsonl'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name two or more systems"),
        (("--workdir=a",), "name two or more systems"),
        (("--workdir=a,b", "--predictions=c,d"), "name two or more systems"),
        (("--predictions=/nowhere/a,/nowhere/b",), "/nowhere/a cannot be read"),
        (("--predictions=a,b", "--step=4"), "--step has no effect, because --predictions names the files"),
        (("--workdir=a,b", "--metric=ter", "--bleu_tokenize=zh"), "--bleu_tokenize has no effect, because --metric"),
        (("--predictions=a,b", "--metric=blue"), "--metric=blue: use one of bleu, chrf"),
        (("--workdir=a,b", "--step=first"), "--step=first: use best, latest or a step number"),
        (("--workdir=/nowhere/a,b",), "/nowhere/a: there is no such run directory"),
    ],
)
def test_bad_input_is_refused_in_one_line(command, arguments, message):
    with pytest.raises((UserError, flags.Error), match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)


def test_run_without_predictions_is_refused_with_advice(command, tmp_path):
    config = Config.from_dict({"data": {"train": {"docs": {"kind": "embedded"}}}})
    RunDirectory.open(tmp_path / "run", config).close()
    with pytest.raises(UserError, match=r"create it with `python eval\.py --workdir="):
        command(f"--workdir={tmp_path / 'run'},{tmp_path / 'run'}")


@pytest.mark.exhaustive
def test_flag_error_of_the_command_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "lm.compare", "--workdir=a", "--samples=0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "samples" in line


# --- predicted labels, tags and answers -------------------------------------------------------------------------


def labelled(path, accuracy, size=200, seed=0):
    """Writes predictions that are correct for a share of the same examples, as eval.py does."""
    draw, texts = random.Random(seed), random.Random(7)
    raw, probabilities, correct = [], [], set(draw.sample(range(size), round(accuracy * size)))
    for number in range(size):
        label = texts.choice("xyz")
        predicted = label if number in correct else draw.choice("xyz".replace(label, ""))
        raw.append(Labelled(f"text {number}", None, label))
        probabilities.append([0.8 if each == predicted else 0.1 for each in "xyz"])
    Classified(raw, np.array(probabilities), list("xyz")).write(path.parent, path.stem)
    return path


@pytest.mark.exhaustive
def test_predicted_labels_are_compared_on_every_metric_of_the_task(command, tmp_path):
    paths = [labelled(tmp_path / f"{n}.jsonl", share, seed=n) for n, share in enumerate((0.9, 0.6, 0.88))]
    text = command(f"--predictions={','.join(map(str, paths))}", "--samples=100")
    headings = ("accuracy", "macro F1", "micro F1", "MCC", "calibration error")
    assert [line.split("  ")[0] for line in text.splitlines() if line.startswith(headings)][:5] == list(headings)
    one = command(f"--predictions={','.join(map(str, paths))}", "--samples=100", "--metric=accuracy")
    assert "macro F1" not in one and one.splitlines()[-1] == "accuracy: bs:100|seed:12345"
    found = re.findall(r"(\S+\.jsonl)\s+([\d.]+)%\s+([\d.]+)% ± ([\d.]+)%[ ]*([\d.]*)", one)
    assert [name for name, *_ in found] == list(map(str, paths))
    correct = [
        np.mean([line["label"] == line["prediction"] for line in map(json.loads, path.read_text().splitlines())])
        for path in paths
    ]
    assert [float(score) for _, score, *_ in found] == pytest.approx(np.multiply(correct, 100), abs=0.006)
    _, p_worse, p_near = (p for *_, p in found)
    assert float(p_worse) == round(1 / 101, 4) and float(p_near) > 0.05


def test_accuracy_is_compared_as_the_bootstrap_of_counts_compares_it(tmp_path):
    """Accuracy is also a ratio of sums, so both computations draw and score the same resamples."""
    paths = [labelled(tmp_path / f"{n}.jsonl", share, seed=n) for n, share in enumerate((0.9, 0.8))]
    systems = [compare.read_system(path, None) for path in paths]
    found = compare.bootstrap([each.metrics for each in systems], 200, samples=100, seed=3)["accuracy"]
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    counts = [np.array([[each["label"] == each["prediction"], 1.0] for each in system]) for system in lines]
    for mine, percent in zip(found, bootstrap(counts, samples=100, seed=3), strict=True):
        assert (100 * mine.score, 100 * mine.mean, 100 * mine.interval) == pytest.approx(
            (percent.score, percent.mean, percent.interval)
        )
        assert mine.p_value == percent.p_value


def test_split_selects_the_predictions_of_runs(command, tmp_path):
    values = {"data": {"train": {"a": {"kind": "tsv", "path": "x", "label_field": "label"}}, "labels": ["x", "y", "z"]}}
    config = Config.from_dict({**values, "objective": {"name": "classification"}, "model": {"family": "encoder"}})
    for name, share in (("one", 0.9), ("two", 0.7)):
        with RunDirectory.open(tmp_path / name, config) as directory:
            labelled(directory.eval_dir(4) / "predictions-test-lines.jsonl", share, size=50)
    roots = f"--workdir={tmp_path / 'one'},{tmp_path / 'two'}"
    text = command(roots, "--split=test/lines", "--samples=20")
    assert text.startswith("50 examples, 20 resamples;") and "accuracy" in text
    with pytest.raises(UserError, match=r"has no eval/<step>/predictions-test\.jsonl; .*--workdir=\S+ --split=test`"):
        command(roots, "--split=test")
    with pytest.raises(UserError, match="--split=tests: use one of valid, test, train, or SPLIT/SOURCE"):
        command(roots, "--split=tests")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "y"}, "example 2: its label differs"),
        ({"text": "other"}, "example 2: its text differs"),
        ({"score": None}, "not all metrics can be computed"),
        ({"score": "high"}, "b.jsonl, line 2 is not an object with valid text, label, prediction, score"),
        ({"words": 1, "only": True}, "hold predictions of different kinds"),
        ({"only": True}, "b.jsonl: its first line is not a prediction written by eval.py"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(command, tmp_path, change, message):
    lines = [{"text": f"t{n}", "label": "x", "prediction": "x", "score": 0.9} for n in range(3)]
    changed = [dict(each) for each in lines]
    changed[1] |= change
    if "words" in change:
        changed = [{"words": ["a"], "tags": ["O"], "prediction": ["O"]}]
    elif change == {"only": True}:
        changed = [change]
    for name, each in (("a", lines), ("b", changed)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in each))
    with pytest.raises(UserError, match=message) as caught:
        command(f"--predictions={tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}", "--samples=5")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--metric=bleu", "--metric=bleu: the predictions in .* support only accuracy, f1_macro"),
        ("--bleu_tokenize=char", "--bleu_tokenize applies only to text predictions"),
        ("--split=test", "--split is valid only with --workdir"),
    ],
)
def test_flags_that_do_not_fit_labels_are_refused(command, tmp_path, flag, message):
    path = labelled(tmp_path / "a.jsonl", 0.9, size=9)
    with pytest.raises(UserError, match=message):
        command(f"--predictions={path},{path}", flag)


def test_conventions_are_printed_and_must_agree(command, tmp_path):
    answer = {"id": "1", "question": "Who?", "answers": ["Ann"], "prediction": "the Ann", "score": 1.0}
    tagged = {"words": ["Ann", "Lee"], "tags": ["B-P", "I-P"], "prediction": ["B-P", "O"]}
    runs = {  # the task, a prediction, the setting, and the convention that it names
        "squad": ("span_qa", answer, {"answer_rules": "squad"}, "answers: rules:squad|"),
        "cmrc": ("span_qa", answer, {"answer_rules": "cmrc"}, "answers: rules:cmrc|"),
        "IOB2": ("tagging", tagged, {"tag_scheme": "IOB2"}, "tag scheme: IOB2"),
        "none": ("tagging", tagged, {"tag_scheme": "none"}, "tag scheme: none"),
    }
    roots, files = {}, {}
    for name, (task, line, settings, convention) in runs.items():
        data = {"train": {"a": {"kind": "jsonl", "path": "x", "label_field": "" if task == "span_qa" else "tags"}}}
        values = {"data": data | {"labels": [] if task == "span_qa" else ["B-P", "I-P", "O"]}, "eval": settings}
        config = Config.from_dict({**values, "objective": {"name": task}, "model": {"family": "encoder"}})
        with RunDirectory.open(tmp_path / name, config) as directory:
            files[name] = directory.eval_dir(4) / "predictions.jsonl"
            files[name].parent.mkdir(parents=True)
            files[name].write_text(json.dumps(line) + "\n")
        roots[name] = directory.root
        assert convention in command(f"--workdir={roots[name]},{roots[name]}", "--samples=5").splitlines()[-1], name
    for one, other in (("squad", "cmrc"), ("IOB2", "none")):
        with pytest.raises(UserError, match=r"not comparable: .*name these files in --predictions") as caught:
            command(f"--workdir={roots[one]},{roots[other]}", "--samples=5")
        assert all(runs[each][3].split(": ")[1] in str(caught.value) for each in (one, other))
        assert runs[one][3] in command(f"--predictions={files[one]},{files[other]}", "--samples=5")
