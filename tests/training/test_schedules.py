"""Every schedule, compared with its closed form in float64 at every step of a run."""

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


def learning_rates(settings: OptimizerConfig, stop: int = STEPS + 30) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(make_schedule(settings, STEPS)))(np.arange(stop, dtype=np.int32)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 1, 20])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_schedule_matches_its_closed_form(name, warmup, final):
    settings = config(name, warmup_steps=warmup, final_fraction=final)
    found = learning_rates(settings)
    assert found.dtype == np.float32
    expected = [closed_form(settings, step) for step in range(len(found))]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7 * PEAK)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_can_end_before_the_run(name):
    settings = config(name, decay_steps=100)
    np.testing.assert_allclose(learning_rates(settings)[100:], PEAK * FINAL, rtol=1e-6)
    np.testing.assert_allclose(
        learning_rates(settings), [closed_form(settings, step) for step in range(STEPS + 30)], rtol=2e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_warmup_starts_above_zero_and_ends_at_the_peak(name):
    found = learning_rates(config(name))
    np.testing.assert_allclose(found[:20], PEAK * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(found[20], PEAK, rtol=1e-6)
    assert found.max() <= PEAK * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "last_fraction"),
    [
        ("linear", FINAL + (1 - FINAL) / 180),
        ("cosine", FINAL + (1 - FINAL) * math.sin(math.pi / 2 / 180) ** 2),
        ("warmup_stable_decay", FINAL + (1 - FINAL) / 40),
    ],
)
def test_end_value_belongs_to_the_step_after_the_last(name, last_fraction):
    found = learning_rates(config(name))
    np.testing.assert_allclose(found[STEPS - 1], PEAK * last_fraction, rtol=2e-5)
    np.testing.assert_allclose(found[STEPS:], PEAK * FINAL, rtol=1e-6)
    assert (learning_rates(config(name, final_fraction=0.0))[:STEPS] > 0).all()


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt"])
def test_schedules_without_end_ignore_final_fraction(name):
    np.testing.assert_array_equal(learning_rates(config(name)), learning_rates(config(name, final_fraction=0.9)))


def test_stable_phase_of_warmup_stable_decay():
    found = learning_rates(config("warmup_stable_decay"))
    np.testing.assert_allclose(found[19:161], PEAK, rtol=1e-6)
    assert (np.diff(found[160 : STEPS + 1]) < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_integer_and_traced_steps_agree(name):
    schedule = make_schedule(config(name), STEPS)
    for step in (0, 19, 20, 100, STEPS - 1):
        assert schedule(step).shape == ()
        np.testing.assert_allclose(schedule(step), jax.jit(schedule)(np.int32(step)), rtol=1e-5)


def test_unresolved_decay_steps_are_refused():
    with pytest.raises(AssertionError, match="from_dict"):
        make_schedule(OptimizerConfig(schedule="cosine"), STEPS)
