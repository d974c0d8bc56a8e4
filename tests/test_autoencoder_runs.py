"""Autoencoders in whole runs: on every mesh, continued to the bit, evaluated, and used by the commands."""

import json

import numpy as np
import pytest

from lm.data.examples.example import from_pair
from lm.data.packing.rows import RowLayout
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError
from tests.run_helpers import assert_same_run, config_of, train_here
from tests.test_recurrent_runs import RECURRENT
from tests.training.test_step import LENGTH, ONE_DEVICE, ROWS, SOURCE, VOCAB, assert_same, config_with, sgd_gradients

TASK = {
    "model__family": "encoder_decoder",
    "model__latent_size": 4,
    "model__latent_vectors": 2,
    "model__variational": True,
    "objective__name": "autoencoding",
    "objective__word_dropout": 0.3,
}
ANNEALED = {"objective__kl_annealing_steps": 6, "objective__kl_annealing": "sigmoid", "objective__free_bits": 0.02}
SHORT = {"optimizer__warmup_steps": 0, "optimizer__schedule": "constant", "train__num_steps": 8}
SHORT |= {"eval__every_steps": 4, "checkpoint__every_steps": 4, "eval__max_rows": 4, "data__sequence_length": 16}
SHORT |= {"checkpoint__best_metric": "valid/negative_elbo", "data__holdout_fraction": 0.05}
KINDS = {"transformer": {}, "recurrent": RECURRENT}


def lone_pairs():
    """Returns rows of one text each, and a row of padding."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, SOURCE - 1, ROWS - 1)
    texts = [rng.integers(3, VOCAB, size).astype(np.int32) for size in sizes]
    rows = [[from_pair(text, text, SpecialTokens(1, 2))] for text in texts]
    return RowLayout(LENGTH, SOURCE).lay_out([*rows, []])


@pytest.mark.parametrize("kind", [pytest.param("transformer", marks=pytest.mark.exhaustive), "recurrent"])
def test_meshes_and_microbatches_give_the_loss_and_gradients_of_one_device(kind):
    """Also although latent vectors are drawn, since the noise of a text depends on the step and the text alone."""
    config = TASK | {"objective__kl_weight": 0.5, "data__source_length": SOURCE} | KINDS[kind]
    expected = sgd_gradients(config_with(**config), ONE_DEVICE, lone_pairs(), drawn=True)
    assert expected[0]["train/loss"] > expected[0]["train/nll"] + 0.01
    both = config_with(**config, train__accumulation=2)
    assert_same(sgd_gradients(both, {"data": 2, "fsdp": 2, "tensor": 2}, lone_pairs(), drawn=True), expected)


@pytest.fixture(scope="module", params=[pytest.param(each, marks=pytest.mark.exhaustive) for each in KINDS])
def run(request, tiny, tmp_path_factory):
    """A run that was stopped and continued; it must equal one that was not."""
    folder, changes = tmp_path_factory.mktemp("autoencoder"), TASK | ANNEALED | SHORT | KINDS[request.param]
    assert train_here(tiny, folder / "straight", **changes) == 0
    assert train_here(tiny, folder / "halves", **changes | {"train__num_steps": 4}) == 0
    assert train_here(tiny, folder / "halves", **changes) == 0
    assert_same_run(folder / "straight", folder / "halves")
    return folder / "halves"


def test_a_run_is_evaluated(run, call):
    outcome = call("eval.py", f"--workdir={run}", "--step=latest")
    assert outcome.status == 0 and "ELBO" in outcome.stdout, outcome.stderr
    found = json.loads((run / "eval/8/results.json").read_text())["metrics"]
    texts = [json.loads(line) for line in (run / "eval/8/predictions.jsonl").read_text().splitlines()]
    exact = np.mean([each["reference"] == each["prediction"] for each in texts])
    assert found["restored_texts"] == pytest.approx(exact) and 0 <= found["restored_tokens"] <= 1
    assert found["negative_elbo"] == pytest.approx(found["nll"] * found["tokens"] / len(texts) + found["kl"])
    assert 0 <= found["active_units"] <= 8 and found["kl"] > 0


def test_texts_are_sampled_from_the_prior_by_seed(run, call):
    def sampled(*flags):
        outcome = call("lm.generate", f"--workdir={run}", "--from_prior", "--temperature=1", *flags)
        assert outcome.status == 0, outcome.stderr
        return outcome.stdout.splitlines()

    three = sampled("--num_samples=3")
    assert len(three) == 3 and sampled("--num_samples=2") == three[:2]
    assert sampled("--num_samples=3", "--seed=1") != three


def test_a_walk_begins_and_ends_with_the_reconstructions(run, call):
    two = "--prompt=a quick fox", "--prompt=the lazy dog"
    rebuilt = call("lm.generate", f"--workdir={run}", *two).stdout.splitlines()
    assert len(rebuilt) == 2
    for how in ("linear", "spherical"):
        outcome = call("lm.generate", f"--workdir={run}", *two, f"--walk={how}", "--points=4")
        assert outcome.status == 0, outcome.stderr
        lines = outcome.stdout.splitlines()
        assert len(lines) == 4 and [lines[0], lines[-1]] == rebuilt


def test_the_latent_vectors_of_texts_are_exported(run, call, tmp_path):
    (tmp_path / "in.txt").write_text("a quick fox\nthe lazy dog\na quick fox\n")
    output = tmp_path / "vectors.npy"
    outcome = call("lm.predict", f"--workdir={run}", f"--input={tmp_path / 'in.txt'}", f"--output={output}")
    assert outcome.status == 0, outcome.stderr
    vectors = np.load(output)
    assert vectors.shape == (3, 8) and np.abs(vectors[0] - vectors[1]).max() > 0
    np.testing.assert_array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--from_prior", "--walk=linear"), "give either --from_prior or --walk, not both."),
        (("--from_prior", "--prompt=a"), "--prompt cannot be combined with --from_prior"),
        (("--walk=linear", "--prompt=a"), "--walk=linear: a walk needs two texts, but 1 were given"),
        (("--walk=linear", "--prompt=a", "--prompt= "), "--walk=linear: prompt 2 is empty"),
        (("--points=3", "--prompt=a"), "--points applies only to walks"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(run, call, flags, message):
    outcome = call("lm.generate", f"--workdir={run}", *flags)
    assert outcome.status != 0 and message in outcome.stderr and len(outcome.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__source_dropout": 0.95}, "config.objective.source_dropout: 0.95 is above"),
        ({"model__latent_size": 0}, "config.model.latent_size: 0 is below"),
        ({"objective__kl_annealing": "sigmiod"}, "did you mean sigmoid?"),
        ({"model__family": "decoder"}, "'autoencoding' does not support model.family=decoder"),
        ({"model__variational": False}, "this run does not compute 'valid/negative_elbo'"),
        (
            {"objective__name": "prefix_lm"},
            "config.model.latent_size: this setting is not read by objective.name=prefix_lm, only by autoencoding",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        config_of(tiny, **TASK | SHORT | RECURRENT | changes)
