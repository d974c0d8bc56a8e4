"""Recurrent models in whole runs: the same on every mesh, continued to the bit, evaluated, and used by the commands."""

import json

import pytest

from lm.errors import UserError
from tests.run_helpers import assert_same_run, train_here
from tests.training.test_step import ONE_DEVICE, assert_same, config_with, ragged_batch, ragged_pairs, sgd_gradients

# Resets what the config files of the tests change for the Transformer.
RECURRENT = {
    "model__architecture": "recurrent",
    "model__num_heads": 6,
    "model__num_kv_heads": 0,
    "model__d_ff": 0,
    "model__d_model": 16,
}
PAIRS = {"model__family": "encoder_decoder", "objective__name": "prefix_lm", "data__source_length": 10}
SHORT = {"optimizer__warmup_steps": 0, "optimizer__schedule": "constant", "train__num_steps": 8}
SHORT |= {"eval__every_steps": 4, "checkpoint__every_steps": 4}


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"model__cell_norm": True}, ragged_batch),
        (PAIRS | {"model__cell": "gru"}, ragged_pairs),
        pytest.param({"model__recurrent_dropout": 0.4, "model__dropout": 0.2}, ragged_batch, id="dropout"),
    ],
)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(changes, batch):
    config = config_with(**RECURRENT, **changes)
    expected = sgd_gradients(config, ONE_DEVICE, batch())
    assert_same(sgd_gradients(config, {"data": 2, "fsdp": 2, "tensor": 2}, batch()), expected)


@pytest.mark.parametrize("changes", [{}, {"model__cell": "rnn", "model__recurrent_dropout": 0.3}])
def test_a_stopped_run_continues_to_the_bit(tiny, tmp_path, changes):
    changes = RECURRENT | SHORT | changes
    assert train_here(tiny, tmp_path / "straight", **changes) == 0
    assert train_here(tiny, tmp_path / "halves", **changes | {"train__num_steps": 4}) == 0
    assert train_here(tiny, tmp_path / "halves", **changes) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")


def test_a_language_model_is_evaluated_and_generates_text(tiny, tmp_path, call):
    assert train_here(tiny, tmp_path / "run", **RECURRENT, **SHORT) == 0
    outcome = call("eval.py", f"--workdir={tmp_path / 'run'}", "--step=latest")
    assert outcome.status == 0, outcome.stderr
    assert 0 < json.loads((tmp_path / "run/eval/8/results.json").read_text())["metrics"]["loss"] < 5.6
    outcome = call("lm.generate", f"--workdir={tmp_path / 'run'}", "--prompt=a quick", "--max_new_tokens=5")
    assert outcome.status == 0 and outcome.stdout.startswith("a quick"), outcome.stderr
    outcome = call("lm.predict", f"--workdir={tmp_path / 'run'}", "--text=a quick", "--pooling=mean")
    assert outcome.status == 0 and len(json.loads(outcome.stdout)["vector"]) == 16, outcome.stderr


def test_pairs_are_translated_by_beam_search(tiny_pairs, tmp_path, call):
    assert train_here(tiny_pairs, tmp_path / "run", **RECURRENT, **SHORT) == 0
    (tmp_path / "in").write_text("ab cd\n\nef\n")
    run = f"--workdir={tmp_path / 'run'}"
    outcome = call("lm.generate", run, f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--num_beams=3")
    assert outcome.status == 0, outcome.stderr
    assert len((tmp_path / "out").read_text().split("\n")) == 4


def test_texts_are_classified(tiny_labels, tmp_path, call):
    assert train_here(tiny_labels, tmp_path / "run", **RECURRENT, **SHORT, model__scan_layers=True) == 0
    outcome = call("eval.py", f"--workdir={tmp_path / 'run'}")
    assert outcome.status == 0 and "accuracy" in outcome.stdout, outcome.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__num_heads": 4}, "config.model.num_heads: this setting is not read by model.architecture=recurrent"),
        ({"model__family": "encoder", "model__d_model": 15, "objective__name": "masked"}, "config.model.d_model: 15"),
        ({"model__cell": "lstn"}, "did you mean lstm?"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config_with(**RECURRENT | changes)


def test_the_transformer_does_not_read_settings_of_recurrent_models():
    with pytest.raises(UserError, match=r"config\.model\.cell: this setting is not read by .*, only by recurrent"):
        config_with(model__cell="gru")
