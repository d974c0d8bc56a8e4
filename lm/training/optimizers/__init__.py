"""The optimizers. Adding one, from optax or our own, is one entry in `OPTIMIZERS`; no other code knows their names."""

from __future__ import annotations

import dataclasses

import optax

from lm.config import OptimizerConfig
from lm.errors import UserError
from lm.training.optimizers.adafactor import scale_by_factored_rms
from lm.training.optimizers.muon import muon
from lm.training.optimizers.optimizer import Optimizer
from lm.training.schedules import SCHEDULES

OPTIMIZERS: dict[str, Optimizer] = {
    # Loshchilov and Hutter 2019
    "adamw": Optimizer(
        lambda config: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon),
        reads=("b1", "b2", "epsilon"),
    ),
    # Shazeer and Stern 2018; b2 is the upper bound of its decay
    "adafactor": Optimizer(lambda config: scale_by_factored_rms(b2=config.b2), reads=("b2",)),
    # Chen et al. 2023
    "lion": Optimizer(lambda config: optax.scale_by_lion(b1=config.b1, b2=config.b2), reads=("b1", "b2")),
    # Jordan 2024; b2 and epsilon are those of AdamW, which updates everything except the matrices of the blocks
    "muon": Optimizer(muon, reads=("b1", "b2", "epsilon")),
    # Polyak 1964; b1 is the momentum (heavy ball)
    "sgd": Optimizer(
        lambda config: optax.trace(decay=config.b1) if config.b1 > 0 else optax.identity(),
        reads=("b1",),
    ),
}


def check_settings(config: OptimizerConfig) -> None:
    """Checks that every setting that differs from its default is read by the chosen optimizer and schedule.

    The exception is `decay_steps`: it is filled in for every schedule when the config is resolved.

    Raises:
        UserError: one line that names the setting.
    """
    default = OptimizerConfig()
    specific = {name for entry in OPTIMIZERS.values() for name in entry.reads}
    unread = dict.fromkeys(specific - set(OPTIMIZERS[config.name].reads), f"optimizer.name={config.name}")
    if not SCHEDULES[config.schedule].has_end:
        unread["final_fraction"] = f"optimizer.schedule={config.schedule}"
    for field in dataclasses.fields(config):
        value, expected = getattr(config, field.name), getattr(default, field.name)
        if field.name in unread and value != expected:
            raise UserError(
                f"config.optimizer.{field.name}: {value!r} would have no effect with {unread[field.name]}; "
                f"leave it at {expected!r}."
            )
