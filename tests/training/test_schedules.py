"""Every schedule against its closed form, in float64, at every step of a run."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from lm.config import OptimizerConfig
from lm.training.schedules import SCHEDULES, make_schedule

PEAK, STEPS, FINAL = 3e-3, 200, 0.1


def config(name: str, **changes) -> OptimizerConfig:
    decay = {"warmup_stable_decay": 40}.get(name, STEPS)
    base = OptimizerConfig(schedule=name, learning_rate=PEAK, warmup_steps=20, decay_steps=decay, final_fraction=FINAL)
    return dataclasses.replace(base, **changes)


def closed_form(settings: OptimizerConfig, step: int, num_steps: int = STEPS) -> float:
    w, d, f = settings.warmup_steps, settings.decay_steps, settings.final_fraction
    if step < w:
        return PEAK * (step + 1) / w
    match settings.schedule:
        case "constant":
            return PEAK
        case "linear":
            return PEAK * (1 + (f - 1) * min(1, (step - w) / (d - w)))
        case "cosine":
            return PEAK * (f + (1 - f) * math.cos(math.pi / 2 * min(1, (step - w) / (d - w))) ** 2)
        case "inverse_sqrt":
            return PEAK * math.sqrt(max(w, 1)) / math.sqrt(max(step, w, 1))
        case "warmup_stable_decay":
            return PEAK * (1 + (f - 1) * min(1, max(0, step - (num_steps - d)) / d))
    raise AssertionError(settings.schedule)


NAMES = list(SCHEDULES)


def rates(settings: OptimizerConfig, stop: int = STEPS + 30) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(make_schedule(settings, STEPS)))(np.arange(stop, dtype=np.int32)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 1, 20])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_closed_form(name, warmup, final):
    settings = config(name, warmup_steps=warmup, final_fraction=final)
    found = rates(settings)
    assert found.dtype == np.float32
    expected = [closed_form(settings, step) for step in range(len(found))]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7 * PEAK)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_end_before_the_run_does(name):
    settings = config(name, decay_steps=100)
    np.testing.assert_allclose(rates(settings)[100:], PEAK * FINAL, rtol=1e-6)
    np.testing.assert_allclose(rates(settings), [closed_form(settings, step) for step in range(STEPS + 30)], rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_first_step_moves_and_the_peak_is_met_at_the_end_of_the_warmup(name):
    found = rates(config(name))
    np.testing.assert_allclose(found[:20], PEAK * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20], PEAK, rtol=1e-6)
    assert found.max() <= PEAK * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "last_share"),
    [
        ("linear", FINAL + (1 - FINAL) / 180),
        ("cosine", FINAL + (1 - FINAL) * math.sin(math.pi / 2 / 180) ** 2),
        ("warmup_stable_decay", FINAL + (1 - FINAL) / 40),
    ],
)
def test_last_step_is_one_short_of_the_end_value(name, last_share):
    found = rates(config(name))
    np.testing.assert_allclose(found[STEPS - 1], PEAK * last_share, rtol=2e-5)
    np.testing.assert_allclose(found[STEPS:], PEAK * FINAL, rtol=1e-6)
    assert (rates(config(name, final_fraction=0.0))[:STEPS] > 0).all()


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt"])
def test_final_fraction_is_ignored(name):
    np.testing.assert_array_equal(rates(config(name)), rates(config(name, final_fraction=0.9)))


def test_stable_phase_of_warmup_stable_decay():
    found = rates(config("warmup_stable_decay"))
    np.testing.assert_allclose(found[19:161], PEAK, rtol=1e-6)
    assert (np.diff(found[160 : STEPS + 1]) < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_plain_integers_and_traced_steps_agree(name):
    rate = make_schedule(config(name), STEPS)
    for step in (0, 19, 20, 100, STEPS - 1):
        assert rate(step).shape == ()
        np.testing.assert_allclose(rate(step), jax.jit(rate)(np.int32(step)), rtol=1e-5)


def test_an_unresolved_config_is_not_guessed_at():
    with pytest.raises(AssertionError, match="from_dict"):
        make_schedule(OptimizerConfig(schedule="cosine"), STEPS)
