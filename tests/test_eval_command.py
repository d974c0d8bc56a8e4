"""eval.py on run directories made here: its output, files and errors."""

import csv
import dataclasses
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, defaults, source
from lm.data.storing.overlap import files_read_differently
from lm.errors import UserError
from lm.evaluation.predictions import read_predictions
from lm.evaluation.text_metrics import score
from lm.models import build_model
from lm.parallel.mesh import make_mesh
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, evaluate_run, evaluation_config
from lm.runs.prepare import prepare
from lm.tasks import task_of
from lm.training.state import abstract_state, make_state
from tests.conftest import CHEAP_COMPILATION

command = importlib.import_module("eval")
ROOT = Path(__file__).resolve().parents[1]
SIZES = {"train": 40, "valid": 6, "test": 9}
TEXT = "the quick brown fox jumps over the lazy dog\n" * 12


def settings(folder, **changes):
    values = defaults()
    values.data.train.story = source(kind="text", path=str(folder / "train.txt"), document="line")
    values.data.train.rhyme = source(kind="text", path=str(folder / "rhyme.txt"), document="line")
    values.data.valid.story = source(kind="text", path=str(folder / "valid.txt"), document="file")
    values.data.tokenizer.kind = "bytes"
    values.data.cache_dir = str(folder / "cache")
    values.data.sequence_length = 16
    values.model.update(num_layers=1, d_model=16, num_heads=2, scan_layers=False, dropout=0.1, remat="full")
    values.train.batch_size = 12  # which 8 devices do not divide
    values.optimizer.ema_decay = 0.9
    values.update_from_flattened_dict(changes)
    return values


def save_run(folder, name, steps):
    """Makes a run of untrained parameters whose average is zero; `steps` maps a step to its valid/loss."""
    config = Config.from_dict(settings(folder).to_dict())
    with RunDirectory.open(folder / name, config) as run:
        config = prepare(config, run.root).config
        run.write_config(config)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        model, optimizer = build_model(config.model, task_of(config).head(config)), optax.sgd(0.1)
        state = make_state(config, model, optimizer, abstract_state(config, model, optimizer, mesh), mesh)
        state = dataclasses.replace(state, ema=jax.tree.map(jax.numpy.zeros_like, state.ema))
        with Checkpoints(run.checkpoints_dir, config.checkpoint) as checkpoints:
            for step, loss in steps.items():
                checkpoints.save(step, state, {}, {"valid/loss": loss})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "train.txt").write_text(TEXT)
    (folder / "rhyme.txt").write_text("one two\nthree four\n" * 20)
    (folder / "valid.txt").write_text(TEXT[:100])
    save_run(folder, "one", {4: 2.0, 8: 3.0})
    return folder


def run_command(*flags):
    environment = {**os.environ, "XLA_FLAGS": " ".join(CHEAP_COMPILATION)}
    return subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def options(**values):
    return Options(**values)


def tree(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def printed(folder):
    """Returns the output of the command for three runs on one device, and the files of one run before."""
    for name in ("trained", "closed"):
        shutil.copytree(folder / "one", folder / name)
    values = RunDirectory.existing(folder / "one").load_config().to_dict()
    values["optimizer"]["ema_decay"] = 0.0  # evaluate the parameters, which are not zero, instead of their average
    (folder / "trained" / "config.json").write_text(Config.from_dict(values).to_json())
    (folder / "closed" / "eval").write_text("in the way")
    before = tree(folder / "one")
    done = run_command(f"--workdir={folder / 'one'},{folder / 'trained'},{folder / 'closed'}", "--stride=8")
    assert done.returncode == 0, done.stderr
    return done, before


def test_several_runs_are_rows_of_one_table(printed):
    done, _ = printed
    lines = done.stdout.splitlines()
    assert lines[0] == "one: step 4 (best valid/loss), valid, 101 tokens in 12 windows of 16, stride 8, on 1 x cpu"
    rows = [line.split() for line in lines if line.startswith(("one ", "trained ", "closed "))]
    assert [row[:3] for row in rows] == [[name, "4", "valid"] for name in ("one", "trained", "closed")]
    assert all(row[-3:] == ["8", "of", "16"] for row in rows)
    assert "\x1b" not in done.stdout


def test_results_are_written_to_the_run_and_nothing_else_changes(folder, printed):
    _, before = printed
    after, where = tree(folder / "one"), folder / "one" / "eval" / "4"
    assert {path for path in after if path not in before} == {
        where / f"results-stride8.{suffix}" for suffix in ("json", "csv", "md")
    }
    assert all(after[path] == content for path, content in before.items())
    values = json.loads((where / "results-stride8.json").read_text())
    # The average of the parameters is evaluated, and it is zero: all tokens are equally probable.
    vocabulary = json.loads((folder / "one" / "config.json").read_text())["model"]["vocab_size"]
    assert values["step"] == 4 and values["split"] == "valid" and values["windowed"] is True
    assert values["metrics"]["loss"] == pytest.approx(math.log(vocabulary), rel=1e-5)
    assert values["metrics"]["perplexity"] == pytest.approx(vocabulary, rel=1e-4)
    assert values["metrics"]["bits_per_byte"] == pytest.approx(101 * math.log2(vocabulary) / 100, rel=1e-5)
    (line,) = csv.DictReader((where / "results-stride8.csv").read_text().splitlines())
    assert float(line["loss"]) == values["metrics"]["loss"]
    assert str(folder) not in (where / "results-stride8.json").read_text(), "no paths of this machine"


def test_directory_that_cannot_be_written_causes_a_warning(printed):
    done, _ = printed
    assert "warning: results could not be written" in done.stderr and "written: " in done.stdout


def test_eight_devices_give_the_metrics_of_one(folder, printed):
    eight = evaluate_run(folder / "trained", options(stride=8)).result
    one = json.loads((folder / "trained" / "eval" / "4" / "results-stride8.json").read_text())
    assert one["devices"].startswith("1 x") and eight.details["devices"].startswith("8 x")
    assert one["batch_size"] == 12 and eight.details["batch_size"] == 16
    assert one["metrics"].keys() == eight.metrics.keys()
    for name, value in one["metrics"].items():
        assert eight.metrics[name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("step", "found"), [("best", 4), ("latest", 8), ("8", 8), ("4", 4)])
def test_step_is_best_latest_or_a_number(folder, step, found):
    done = evaluate_run(folder / "one", options(step=step))
    assert done.result.step == found and done.directory == folder / "one" / "eval" / str(found)
    assert done.stem == "results"


def test_split_source_of_a_split_or_text_is_scored(folder):
    whole = evaluate_run(folder / "one", options(split="train"))
    assert whole.stem == "results-train"
    assert {"loss", "story/loss", "rhyme/loss"} < set(whole.result.metrics)
    single = evaluate_run(folder / "one", options(split="train/rhyme"))
    assert single.stem == "results-train-rhyme" and "rhyme/loss" not in single.result.metrics
    assert single.result.metrics["tokens"] == whole.result.metrics["rhyme/tokens"]
    text = evaluate_run(folder / "one", options(text=str(folder / "rhyme.txt")))
    assert text.stem == "results-text-rhyme.txt" and text.result.split == "text rhyme.txt"
    assert text.result.metrics["tokens"] == len((folder / "rhyme.txt").read_bytes()) + 1  # end token


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_in_another_encoding_gets_advice_that_fits_the_flag(folder, encoding):
    (folder / "foreign.txt").write_text("façade\n", encoding=encoding)
    with pytest.raises(UserError, match=r"foreign\.txt: the .*; convert it from .* to UTF-8 first\.$"):
        evaluate_run(folder / "one", options(text=str(folder / "foreign.txt")))


def test_text_that_was_read_alike_in_training_is_not_reported_as_read_differently(folder):
    """The source of --text is of a class of its own, but has the settings of any other text file."""
    config = Config.from_dict(settings(folder, **{"data.train.story.document": "file"}).to_dict())
    read = evaluation_config(folder / "one", config, options(text=str(folder / "train.txt")))
    assert files_read_differently(read.data, "test") == []
    read = evaluation_config(folder / "one", config, options(text=str(folder / "rhyme.txt")))
    assert len(files_read_differently(read.data, "test")) == 1


def test_another_config_provides_the_data(folder):
    values = settings(folder, **{"data.valid.story.path": str(folder / "rhyme.txt"), "data.sequence_length": 8})
    other = Config.from_dict(values.to_dict())
    done = evaluate_run(folder / "one", options(config=other, config_name="other"))
    assert done.stem == "results-other-stride8" and done.result.sequence_length == 8
    assert done.result.metrics["tokens"] == len((folder / "rhyme.txt").read_bytes()) + 1


def test_longer_rows_of_another_config_may_have_more_masked_tokens():
    """The capacity of a row for masked tokens follows from the data and does not make another model."""

    def config(length):
        values = settings(Path("nowhere"), **{"objective.name": "masked", "data.sequence_length": length})
        values.data.tokenizer.extra_ids = 1
        values.model.update(family="encoder", vocab_size=260, max_length=96)
        return Config.from_dict(values.to_dict())

    found = evaluation_config(Path("run"), config(32), options(config=config(96), config_name="longer"))
    heads = [task_of(each).head(each).max_masked for each in (found, config(96), config(32))]
    assert heads[0] == heads[1] > heads[2]
    assert found.data.sequence_length == 96


def test_config_with_another_model_is_refused_with_the_settings_that_differ(folder):
    other = Config.from_dict(settings(folder, **{"model.d_model": 32, "model.norm": "rmsnorm"}).to_dict())
    with pytest.raises(UserError, match=r"model\.d_model: 16 -> 32.*model\.norm: 'layernorm' -> 'rmsnorm'") as caught:
        evaluate_run(folder / "one", options(config=other, config_name="other"))
    assert "dropout" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": "5"}, "no checkpoint for step 5"),
        ({"split": "test"}, "no test split"),
        ({"split": "train/prose"}, "train has no data source named 'prose'; choose one of rhyme, story"),
        ({"text": "missing.txt"}, "missing.txt"),
        ({"stride": 17}, "exceeds data.sequence_length=16"),
    ],
)
def test_missing_data_or_checkpoint_is_refused(folder, wrong, message):
    with pytest.raises(UserError, match=message):
        evaluate_run(folder / "one", options(**wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "validation"}, "--split=validation: use one of valid, test, train"),
        ({"text": "a.txt", "split": "test"}, "--text"),
        ({"stride": -1}, "--stride must be at least 1, .*, not -1"),
    ],
)
def test_flags_are_checked_before_anything_is_read(wrong, message):
    with pytest.raises(UserError, match=message):
        command._check(options(**wrong))


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        evaluate_run(tmp_path / "nowhere", options())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x", "--config.data.holdout=tail"], "also pass --config=FILE.py"),
    ],
)
@pytest.mark.exhaustive
def test_errors_are_one_line(flags, message):
    done = run_command(*flags)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


PAIRS = {split: [(f"{split} {i}", f"{i} {split[0] * (i % 3)}") for i in range(count)] for split, count in SIZES.items()}


@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory):
    """Returns a run with pairs and two checkpoints of different random parameters."""
    folder = tmp_path_factory.mktemp("pairs")
    values = defaults()
    for split, pairs in PAIRS.items():
        for side, suffix in enumerate(("in", "out")):
            (folder / f"{split}.{suffix}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
        paths = {"path": str(folder / f"{split}.in"), "target_path": str(folder / f"{split}.out")}
        values.data[split].task = source(document="line", prefix="do: ", **paths)
    values.data.update(cache_dir=str(folder / "cache"), sequence_length=12, source_length=16)
    values.data.tokenizer.kind = "bytes"
    values.objective.name = "seq2seq"
    values.model.update(family="encoder_decoder", num_layers=1, d_model=16, num_heads=2, init_std=0.5)
    values.train.batch_size = 4
    values.checkpoint.best_metric = "valid/bleu"
    values.eval.generation.update(metrics=("bleu", "exact_match"), max_new_tokens=5)
    config = Config.from_dict(values.to_dict())
    with RunDirectory.open(folder / "run", config) as run:
        config = prepare(config, run.root).config
        run.write_config(config)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        model, optimizer = build_model(config.model, task_of(config).head(config)), optax.sgd(0.1)
        abstract = abstract_state(config, model, optimizer, mesh)
        with Checkpoints(run.checkpoints_dir, config.checkpoint) as checkpoints:
            for step, seed in ((4, 0), (8, 1)):
                state = make_state(dataclasses.replace(config, seed=seed), model, optimizer, abstract, mesh)
                checkpoints.save(step, state, {}, {"valid/bleu": step})
    return folder / "run"


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_outputs_of_a_run_with_pairs_are_written_and_scored(pairs_run, call):
    outcome = call("eval.py", f"--workdir={pairs_run}", "--split=test", "--num_beams=2")
    assert outcome.status == 0, outcome.stderr
    where = pairs_run / "eval" / "8"
    assert {path.name for path in where.iterdir()} == {
        "predictions-test-beams2.jsonl",
        *(f"results-test-beams2.{suffix}" for suffix in ("json", "csv", "md")),
    }
    assert "predictions-test-beams2.jsonl" in outcome.stdout and "step 8 (best valid/bleu), test" in outcome.stdout
    lines = [json.loads(line) for line in (where / "predictions-test-beams2.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"source", "reference", "prediction", "score"}] * len(PAIRS["test"])
    assert [(line["source"], line["reference"]) for line in lines] == [("do: " + a, b) for a, b in PAIRS["test"]]
    assert all(line["score"] < 0 for line in lines)

    results = json.loads((where / "results-test-beams2.json").read_text())
    examples = read_predictions(where / "predictions-test-beams2.jsonl")
    outputs, references = [each.prediction for each in examples], [each.references for each in examples]
    scores = score(("bleu", "exact_match"), outputs, references, bleu_tokenize="13a")
    assert {name: results["metrics"][name] for name in scores.metrics} == pytest.approx(scores.metrics)
    assert results["signatures"] == scores.signatures and "tok:13a" in results["signatures"]["bleu"]
    assert set(results["metrics"]) == {"nll", "perplexity", "token_accuracy", "tokens", "bleu", "exact_match"}
    assert results["metrics"]["tokens"] == sum(len(target) + 1 for _, target in PAIRS["test"])
    assert results["split"] == "test" and results["stride"] is None and results["generation"]["num_beams"] == 2
    assert str(pairs_run.parent) not in json.dumps(results), "no paths of this machine"


@pytest.mark.exhaustive
def test_average_is_the_mean_of_the_checkpoints(pairs_run):
    config = RunDirectory.existing(pairs_run).load_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(
        config, build_model(config.model, task_of(config).head(config)), optax.identity(), mesh
    ).params
    with Checkpoints(pairs_run / "checkpoints", config.checkpoint, read_only=True) as checkpoints:
        first, second = (jax.device_get(checkpoints.restore_params(abstract, step)[0]) for step in (4, 8))
        mean, steps = checkpoints.average_params(2, abstract)
        alone, _ = checkpoints.average_params(1, abstract, last=7)
    assert steps == [4, 8]
    expected = jax.tree.map(lambda a, b: np.mean([a, b], axis=0), first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), mean, expected)
    jax.tree.map(np.testing.assert_array_equal, alone, first)
    assert np.abs(first["token_embedding"]["embedding"] - second["token_embedding"]["embedding"]).max() > 0.1

    done = evaluate_run(pairs_run, options(average=2))
    assert done.stem == "results-average2" and done.result.step == 8
    assert done.result.details["parameters"] == "average of the checkpoints at steps 4, 8"
    single = evaluate_run(pairs_run, options(step="4"))
    assert single.stem == "results" and single.result.metrics["nll"] != done.result.metrics["nll"]
    assert len(single.evaluation.previews(99)) == len(done.evaluation.previews(99)) == len(PAIRS["valid"])


def test_data_of_another_config_may_lack_the_metric_of_the_best_step(pairs_run):
    values = RunDirectory.existing(pairs_run).load_config().to_dict()
    values["eval"]["generation"]["metrics"] = ()
    values["checkpoint"]["best_metric"] = "valid/loss"
    done = evaluate_run(pairs_run, options(config=Config.from_dict(values), config_name="plain"))
    assert done.result.step == 8 and done.stem == "results-plain", "the best by the run's own metric"
    assert "bleu" not in done.result.metrics and done.evaluation.previews(99) == []
