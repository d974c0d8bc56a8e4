"""The learning rate as a function of the step.

Steps s are counted from 0. Let w be warmup_steps, p the peak learning rate, and e = final_fraction * p the end value.
During the warm-up (s < w), the learning rate is p * (s + 1) / w, so step 0 already changes the parameters, and step
w - 1 is the first at the peak learning rate. From step w on, the learning rate depends on the schedule:

    constant              stays at p
    linear                falls linearly from p at s = w to e at s = decay_steps, then stays at e
    cosine                like linear, but along half a cosine (Loshchilov and Hutter 2017, without restarts)
    inverse_sqrt          equals p * sqrt(w / max(s, w)), where w = 0 counts as 1 (Vaswani et al. 2017)
    warmup_stable_decay   stays at p up to s = num_steps - decay_steps, then falls linearly to e at s = num_steps

A decay that ends at s = num_steps ends one step after the last step, which therefore still changes the parameters, even
if final_fraction is 0. To add a schedule, add an entry to `SCHEDULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import OptimizerConfig

# optax's schedules are not used, because their float32 values differ from ours in the last bits, even in the warm-up.


@dataclass(frozen=True)
class Schedule:
    """The part of a schedule after the warm-up."""

    # (config, num_steps, step) -> the learning rate at the int32 `step`, scaled from 0 (the end value) to 1 (the peak)
    height: Callable[[OptimizerConfig, int, jax.Array], jax.Array]
    has_end: bool = True  # whether the schedule reads decay_steps and final_fraction; if not, it never ends
    decays_last: bool = False  # whether decay_steps is the length of the final decay, not the step at which it ends

    @property
    def reads(self) -> tuple[str, ...]:
        """The settings that this schedule reads but some other schedules do not."""
        return ("decay_steps", "final_fraction") if self.has_end else ()


def make_schedule(config: OptimizerConfig, num_steps: int) -> Callable[[Any], jax.Array]:
    """Returns a function that maps a step (int, or int32 scalar under jit) to the learning rate, a float32 scalar."""
    entry, warmup = SCHEDULES[config.schedule], config.warmup_steps
    assert config.decay_steps > 0 or not entry.has_end, "Config.from_dict must have resolved decay_steps=0"
    assert warmup >= 0, "Config.from_dict must have resolved warmup_steps=-1"

    def learning_rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        rising = (step + 1).astype(jnp.float32) / max(warmup, 1)
        falling = entry.height(config, num_steps, step)
        if entry.has_end:
            falling = config.final_fraction + (1.0 - config.final_fraction) * falling
        return config.learning_rate * jnp.where(step < warmup, rising, falling)

    return learning_rate


def _progress(step: jax.Array, start: int, end: int) -> jax.Array:
    """Returns 0 up to step `start`, 1 from step `end` on, and a linear interpolation in between."""
    return jnp.clip((step - start).astype(jnp.float32) / max(1, end - start), 0.0, 1.0)


def _cosine(config: OptimizerConfig, num_steps: int, step: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, config.warmup_steps, config.decay_steps)))


def _inverse_sqrt(config: OptimizerConfig, num_steps: int, step: jax.Array) -> jax.Array:
    first = max(config.warmup_steps, 1)
    return jnp.sqrt(first / jnp.maximum(step, first).astype(jnp.float32))


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda config, num_steps, step: jnp.ones((), jnp.float32), has_end=False),
    "linear": Schedule(lambda config, num_steps, step: 1.0 - _progress(step, config.warmup_steps, config.decay_steps)),
    "cosine": Schedule(_cosine),
    "inverse_sqrt": Schedule(_inverse_sqrt, has_end=False),
    "warmup_stable_decay": Schedule(
        lambda config, num_steps, step: 1.0 - _progress(step, num_steps - config.decay_steps, num_steps),
        decays_last=True,
    ),
}
