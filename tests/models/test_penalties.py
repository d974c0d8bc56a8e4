"""Penalties on the activations of a recurrent language model (Merity 2018): their values, and the training loss."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.models import build_model
from lm.models.network import LAYERS, RECORD
from tests.models.test_recurrent import BASE, batch_of, random_tokens
from tests.small_model import random_params
from tests.test_recurrent_runs import RECURRENT
from tests.training.test_step import ONE_DEVICE, config_with, ragged_batch, sgd_gradients

PENALTIES = {"output_penalty": 2.0, "change_penalty": 0.5}


def test_penalties_are_sums_over_the_targets_of_means_over_the_features():
    """Without dropout; the change at the first token of a text does not count, nor does padding."""
    model = build_model(dataclasses.replace(BASE, **PENALTIES))
    params = random_params(model, 0.5)
    batch = batch_of([[random_tokens(3), random_tokens(2)], [random_tokens(4)]], 6)
    output, recorded = model.apply({"params": params}, batch, train=True, mutable=[RECORD])
    h_BLD = np.swapaxes(recorded[RECORD][LAYERS][0][-1], 0, 1)
    counted = [(0, t) for t in (0, 1, 2, 3, 4)] + [(1, t) for t in (0, 1, 2, 3)]
    expected = sum(2.0 * np.mean(h_BLD[row, t] ** 2) for row, t in counted)
    expected += sum(
        0.5 * np.mean((h_BLD[row, t] - h_BLD[row, t - 1]) ** 2) for row, t in counted if t and (row, t) != (0, 3)
    )
    assert float(output.penalty) == pytest.approx(float(expected), rel=1e-5)
    assert model.apply({"params": params}, batch).penalty is None, "only in training"


@pytest.mark.parametrize(("task", "name"), [("classification", "output_penalty"), ("contrastive", "change_penalty")])
def test_penalties_are_refused_by_tasks_other_than_causal_language_modelling(task, name):
    message = f"config.model.{name}: this setting is not read by objective.name={task}, only by causal"
    with pytest.raises(UserError, match=message):
        config_with(**RECURRENT | {"objective__name": task, f"model__{name}": 1.0})


def test_penalties_are_added_to_the_training_loss_in_any_number_of_microbatches():
    changes = RECURRENT | {f"model__{name}": value for name, value in PENALTIES.items()}
    found = [
        sgd_gradients(config_with(**changes, train__accumulation=count), ONE_DEVICE, ragged_batch()) for count in (1, 2)
    ]
    (metrics, gradients), (halves, gradients_of_halves) = found
    assert metrics["train/loss"] > metrics["train/nll"] + 1e-4
    assert halves["train/loss"] == pytest.approx(metrics["train/loss"], abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, gradients_of_halves)
