"""Runs that would learn nothing, and evaluations without a meaning: refused in one line instead of status 0."""

import dataclasses
import json
import math
import random
import shutil

import jax
import numpy as np
import pytest

from lm.config import Config, source
from lm.data.reading import fields
from lm.data.storing.overlap import Hashes
from lm.errors import UserError
from lm.objectives import losses
from lm.runs.directory import RunDirectory
from lm.tasks import TASKS
from lm.training.loop import train
from tests.conftest import Tiny
from tests.run_helpers import checkpoints_of, train_here

NUMBERS = {"objective__name": "regression", "checkpoint__best_metric": "valid/loss"}


def numbers_file(tiny_labels: Tiny, folder, value: str) -> Tiny:
    """Replaces the labels of the data with a number, and about one in ten with 1.5."""
    draw, lines = random.Random(0), tiny_labels.text.read_text().splitlines()
    rows = [f"{line.partition(chr(9))[0]}\t{value if draw.random() < 0.9 else 1.5}" for line in lines[1:]]
    (folder / "numbers.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    return Tiny(folder / "numbers.tsv", tiny_labels.config, tiny_labels.cache)


@pytest.fixture
def overflowing(monkeypatch):
    """Allows labels whose loss overflows, which readers refuse; they stand for any other cause of such a loss."""
    monkeypatch.setattr(fields, "LARGEST", math.inf)


@pytest.mark.exhaustive
def test_a_run_whose_steps_were_all_skipped_ends_with_an_error(tiny_labels, tmp_path, capsys, overflowing):
    huge = numbers_file(tiny_labels, tmp_path, "1e38")
    changes = {**NUMBERS, "train__num_steps": 3, "optimizer__warmup_steps": 1}
    for _ in range(2):  # starting again changes nothing
        with pytest.raises(UserError, match="run: nothing was learnt: all 3 steps were skipped, because their loss or"):
            train_here(huge, tmp_path / "run", **changes)
        assert "3 of 3 steps were skipped: their loss or gradient was not finite." in capsys.readouterr().out
    assert list((tmp_path / "run" / "eval").glob("*/*")) == []


@pytest.mark.exhaustive
def test_a_run_whose_gradients_were_all_zero_ends_with_an_error(tiny_labels, tmp_path, monkeypatch):
    def no_loss(self, output, batch, config):
        sums = losses.loss_sums(output.logits, batch, config)
        return dataclasses.replace(sums, loss=0.0 * sums.loss)

    monkeypatch.setattr(TASKS["classification"], "loss", no_loss.__get__(TASKS["classification"]))
    changes = {"train__num_steps": 2, "optimizer__warmup_steps": 1, "eval__every_steps": 9, "model__d_ff": 24}
    with pytest.raises(UserError, match="nothing was learnt: the gradient was 0 in every step"):
        train_here(tiny_labels, tmp_path / "run", **changes)


def test_data_without_a_weighted_target_is_refused_before_training(tiny_labels, tmp_path):
    """Every label of the data has the weight 0; another one, which does not occur, has the weight 1."""
    changes = {"objective__class_weights": (0.0, 0.0, 1.0), "data__labels": ("is_x", "is_y", "is_z")}
    with pytest.raises(UserError, match=r"config\.data\.train: no example has a target with a positive weight"):
        train_here(tiny_labels, tmp_path / "run", **changes)
    assert checkpoints_of(tmp_path / "run") == []


def test_a_single_label_is_refused_even_if_it_is_named(tiny_labels, tmp_path):
    (tmp_path / "same.tsv").write_text("text\tlabel\n" + "".join(f"text {i}\tis_x\n" for i in range(60)))
    same = Tiny(tmp_path / "same.tsv", tiny_labels.config, tiny_labels.cache)
    with pytest.raises(UserError, match="labels are 'is_x', so there is nothing to distinguish"):
        train_here(same, tmp_path / "run", data__labels=("is_x",))


@pytest.fixture
def contrastive(tmp_path):
    """Returns a function that makes the config of a contrastive run on the given number of pairs."""

    def make(pairs=8, valid=4, **changes):
        values = {"data": {"tokenizer": {"kind": "bytes"}, "sequence_length": 16, "cache_dir": str(tmp_path / "cache")}}
        for split, count in (("train", pairs), ("valid", valid)):
            path = tmp_path / f"{split}.tsv"
            path.write_text("one\tother\n" + "".join(f"a{i}\tb{i}\n" for i in range(count)))
            values["data"][split] = {
                "s": source(kind="tsv", path=str(path), field="one", target_field="other").to_dict()
            }
        values["model"] = {"family": "encoder", "num_layers": 1, "d_model": 16, "num_heads": 2}
        values |= {"objective": {"name": "contrastive"}, "train": {"batch_size": 4, "num_steps": 2}}
        values |= {"optimizer": {"warmup_steps": 1}, "checkpoint": {"best_metric": "valid/loss"}}
        for name, value in changes.items():
            section, _, setting = name.partition("__")
            values.setdefault(section, {})[setting] = value
        return Config.from_dict(values)

    return make


@pytest.mark.parametrize("setting", ["train__batch_size", "eval__batch_size", "eval__max_rows"])
def test_a_batch_of_one_text_is_refused_in_contrastive_learning(contrastive, setting):
    with pytest.raises(UserError, match=rf"config\.{setting.replace('__', '.')}: a text that is alone in its batch"):
        contrastive(**{setting: 1})
    contrastive(**{setting: 2})


@pytest.mark.parametrize("sizes", [{"pairs": 1}, {"valid": 1}])
def test_a_single_pair_is_refused_in_contrastive_learning(contrastive, sizes, tmp_path):
    config = contrastive(**{**sizes, "train__batch_size": 8, "eval__batch_size": 8})
    with pytest.raises(UserError, match=r"config\.data.* has only one pair, so its texts cannot be compared"):
        train(config, tmp_path / "run")


# --- evaluations ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_labels, tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated") / "run"
    assert train_here(tiny_labels, root, train__num_steps=2, optimizer__warmup_steps=1) == 0
    return root


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_evaluation_whose_loss_is_not_finite_is_an_error_and_keeps_old_results(trained, refused, value):
    root = trained.with_name(f"broken_{value}")
    shutil.copytree(trained, root)
    directory = RunDirectory.existing(root)
    config = directory.load_config()
    with directory.open_checkpoints(config, read_only=False) as checkpoints:
        params, step = checkpoints.restore_params(step="best", ema=True)
        broken = jax.tree.map(lambda x: jax.numpy.full_like(x, value), params)
        checkpoints.save(9, {"params": broken, "ema": broken}, checkpoints.record(step)["metadata"], {})
    message = f"broken_{value}, step 9: the loss on valid is "
    refused(message, "eval.py", f"--workdir={root}", "--step=9", keeping=root)


@pytest.mark.exhaustive
def test_a_run_that_ends_with_a_loss_that_is_not_finite_is_an_error(tiny_labels, trained, tmp_path, overflowing):
    """The validation data has a label that overflows; the training data has none."""
    huge = numbers_file(tiny_labels, tmp_path, "1.5")
    valid = tmp_path / "valid.tsv"
    valid.write_text("text\tlabel\na b\t1e38\n")
    values = {**NUMBERS, "train__num_steps": 2, "optimizer__warmup_steps": 1, "data__valid__lines__path": str(valid)}
    values["data__valid__lines__part"] = (0.0, 1.0)
    with pytest.raises(UserError, match=r"run, step 2: the loss on valid is inf, so the results are meaningless"):
        train_here(huge, tmp_path / "run", **values)
    assert list((tmp_path / "run" / "eval").glob("*/*")) == [] and checkpoints_of(tmp_path / "run")[-1] == 2


@pytest.mark.filterwarnings("ignore:the load_module")
def test_results_say_how_many_examples_were_also_trained_on(trained, tiny_labels, call, tmp_path):
    lines = tiny_labels.text.read_text().splitlines()
    assert Hashes.load(trained / "eval" / "train_hashes.npz") is not None
    outcome = call("eval.py", f"--workdir={trained}")
    assert outcome.status == 0 and "also used for training" not in outcome.stdout
    flags = [f"--config={tiny_labels.config}:{tiny_labels.text}", "--config.data.valid.lines.part=(0.0, 1.0)"]
    outcome = call("eval.py", f"--workdir={trained}", *flags)
    assert outcome.status == 0, outcome.stderr
    step = checkpoints_of(trained)[-1]
    results = json.loads((trained / "eval" / str(step) / "results-tiny_labels.json").read_text())
    counts = results["also_trained_on"]
    assert counts["total"] == len(lines) - 1 and 0.4 * counts["total"] < counts["same"] < 0.6 * counts["total"]
    assert f"examples that are also used for training: {counts['same']} of {counts['total']}" in outcome.stdout
