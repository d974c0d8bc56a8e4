"""Recurrent models in whole runs: the same on every mesh, continued to the bit, evaluated, and used by the commands."""

import json

import jax
import numpy as np
import pytest

from lm.config import Config
from lm.errors import UserError
from lm.parallel.mesh import check_divisible, make_mesh
from tests.run_helpers import assert_same_run, config_of, final_state, train_here
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
        pytest.param(PAIRS | {"model__cell": "gru"}, ragged_pairs, id="pairs", marks=pytest.mark.exhaustive),
        pytest.param(
            {"model__recurrent_dropout": 0.4, "model__dropout": 0.2},
            ragged_batch,
            id="dropout",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(changes, batch):
    config = config_with(**RECURRENT, **changes)
    expected = sgd_gradients(config, ONE_DEVICE, batch())
    assert_same(sgd_gradients(config, {"data": 2, "fsdp": 2, "tensor": 2}, batch()), expected)


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """The directory of an uninterrupted run."""
    root = tmp_path_factory.mktemp("straight") / "run"
    assert train_here(tiny, root, **RECURRENT, **SHORT) == 0
    return root


def test_a_stopped_run_continues_to_the_bit(tiny, tmp_path, straight):
    changes = RECURRENT | SHORT
    assert train_here(tiny, tmp_path / "halves", **changes | {"train__num_steps": 4}) == 0
    assert train_here(tiny, tmp_path / "halves", **changes) == 0
    assert_same_run(straight, tmp_path / "halves")


@pytest.mark.exhaustive
def test_a_stopped_run_with_recurrent_dropout_continues_to_the_bit(tiny, tmp_path):
    changes = RECURRENT | SHORT | {"model__cell": "rnn", "model__recurrent_dropout": 0.3}
    assert train_here(tiny, tmp_path / "straight", **changes) == 0
    assert train_here(tiny, tmp_path / "halves", **changes | {"train__num_steps": 4}) == 0
    assert train_here(tiny, tmp_path / "halves", **changes) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")


def test_a_language_model_is_evaluated_and_generates_text(straight, call):
    outcome = call("eval.py", f"--workdir={straight}", "--step=latest")
    assert outcome.status == 0, outcome.stderr
    assert 0 < json.loads((straight / "eval/8/results.json").read_text())["metrics"]["loss"] < 5.6
    outcome = call("lm.generate", f"--workdir={straight}", "--prompt=a quick", "--max_new_tokens=5")
    assert outcome.status == 0 and outcome.stdout.startswith("a quick"), outcome.stderr
    outcome = call("lm.predict", f"--workdir={straight}", "--text=a quick", "--pooling=mean")
    assert outcome.status == 0 and len(json.loads(outcome.stdout)["vector"]) == 16, outcome.stderr


@pytest.mark.exhaustive
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


def test_recurrent_dropout_alone_needs_no_other_dropout(tiny, tmp_path):
    changes = RECURRENT | SHORT | {"model__dropout": 0.0, "model__recurrent_dropout": 0.3, "train__num_steps": 2}
    assert train_here(tiny, tmp_path / "run", **changes) == 0


@pytest.mark.exhaustive
def test_a_run_starts_from_the_parameters_of_another(tiny, tmp_path, capsys):
    """The layers have different widths, and the new model has one more layer."""
    changes = RECURRENT | SHORT | {"model__embedding_width": 8, "model__num_layers": 2, "optimizer__ema_decay": 0.0}
    assert train_here(tiny, tmp_path / "one", **changes, checkpoint__keep_latest=1) == 0
    changes |= {"init_from": str(tmp_path / "one"), "optimizer__learning_rate": 1e-7, "train__num_steps": 1}
    capsys.readouterr()
    assert train_here(tiny, tmp_path / "two", **changes | {"model__num_layers": 3}) == 0
    assert "randomly initialised: layer_2/forward/gates (bias)" in capsys.readouterr().out
    before, after = final_state(tmp_path / "one").params, final_state(tmp_path / "two").params
    assert set(after) - set(before) == {"layer_2"}
    for name in before:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before[name], after[name])


def test_a_mesh_that_does_not_divide_a_direction_is_refused(tiny_labels):
    changes = RECURRENT | {"model__d_model": 6, "mesh__data": 1, "mesh__fsdp": 2, "model__scan_layers": True}
    config = config_of(tiny_labels, **changes)
    with pytest.raises(UserError, match=r"config\.mesh\.fsdp: 2 does not divide model\.d_model / 2 = 3"):
        check_divisible(config, make_mesh(config.mesh, jax.devices()[:2]))


def test_an_encoder_uses_the_mean_of_its_outputs_by_default(tiny_labels):
    config = config_of(tiny_labels, **RECURRENT, model__scan_layers=True)
    assert config.model.pooling == "mean" and Config.from_dict(config.to_dict()) == config
