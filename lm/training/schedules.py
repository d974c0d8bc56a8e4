"""Learning rate as a function of the step.

Steps count from 0; step s is the one that makes update s + 1. With w = warmup_steps, peak p and end value
e = final_fraction * p, every schedule starts with the same warm-up, p * (s + 1) / w for s < w: step 0 already
moves, step w - 1 is the first at the peak. From step w on:

    constant              p
    linear                from p at s = w straight to e at s = decay_steps, e afterwards
    cosine                the same ends along half a cosine (Loshchilov and Hutter 2017, without restarts)
    inverse_sqrt          p * sqrt(w / max(s, w)), w = 0 read as 1 (Vaswani et al. 2017)
    warmup_stable_decay   p up to s = num_steps - decay_steps, then straight to e at s = num_steps

So the end value belongs to the step after the last (s = num_steps, where decay_steps is num_steps): the run's
last step, num_steps - 1, is one step short of it, and is not wasted when final_fraction is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import OptimizerConfig

Schedule = Callable[[Any], jax.Array]


def schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """The learning rate of a run of `num_steps` steps.

    Returns a function of the step (int, or an int32 scalar under jit) to a float32 scalar. `config` comes resolved
    from `Config.from_dict`: decay_steps is no longer 0 where the schedule reads it.
    """
    peak, warmup, decay = config.learning_rate, config.warmup_steps, config.decay_steps
    assert decay > 0 or config.schedule in ("constant", "inverse_sqrt"), "decay_steps=0 is resolved by Config.from_dict"

    def progress(step: jax.Array, start: int, end: int) -> jax.Array:
        return jnp.clip((step - start).astype(jnp.float32) / max(1, end - start), 0.0, 1.0)

    def falling(share: jax.Array) -> jax.Array:
        """`share` of the way from the end value (0) up to the peak (1)."""
        return config.final_fraction + (1.0 - config.final_fraction) * share

    def after_warmup(step: jax.Array) -> jax.Array:
        """As a share of the peak."""
        if config.schedule == "constant":
            return jnp.ones((), jnp.float32)
        if config.schedule == "linear":
            return falling(1.0 - progress(step, warmup, decay))
        if config.schedule == "cosine":
            return falling(0.5 * (1.0 + jnp.cos(jnp.pi * progress(step, warmup, decay))))
        if config.schedule == "inverse_sqrt":
            return jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)).astype(jnp.float32))
        assert config.schedule == "warmup_stable_decay", config.schedule
        return falling(1.0 - progress(step, num_steps - decay, num_steps))

    def rate(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        rising = (step + 1).astype(jnp.float32) / max(warmup, 1)
        return peak * jnp.where(step < warmup, rising, after_warmup(step))

    return rate
