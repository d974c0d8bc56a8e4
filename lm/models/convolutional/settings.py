"""Checks the settings of the convolutional network."""

from __future__ import annotations

from typing import Any

from lm.models.architecture import Architecture, Refuse
from lm.models.convolutional.model import Convolutional


def check(config: Any, refuse: Refuse) -> None:
    model, widths, optimizer = config.model, config.model.filter_widths, config.optimizer
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        refuse("model.filter_widths", f"{widths} must consist of distinct positive widths, such as (3, 4, 5).")
    if model.d_model % len(widths):
        refuse("model.d_model", f"{model.d_model} features cannot be divided among {len(widths)} filter widths.")
    if model.static_channel and not model.embedding_from:
        refuse("model.static_channel", "two channels need pre-trained vectors; set model.embedding_from.")
    if not model.use_bias:
        refuse("model.use_bias", "the filters of a convolutional network always have a bias; leave this set to True.")
    if optimizer.layer_decay != 1.0 or optimizer.freeze_layers:
        name = "freeze_layers" if optimizer.freeze_layers else "layer_decay"
        problem = "a convolutional network has no layers"
        refuse(f"optimizer.{name}", f"{problem}; list the parameters to freeze in optimizer.freeze.")


CONVOLUTIONAL = Architecture(
    "convolutional network (Kim 2014)",
    {"encoder": Convolutional.build},
    frozenset({"model.filter_widths", "model.static_channel"}),
    check=check,
    poolings={"encoder": "first"},
    whole_texts=True,
)
