"""Checks the settings of the convolutional network."""

from __future__ import annotations

from typing import Any

from lm.models.architecture import Architecture, Refuse
from lm.models.convolutional.model import Convolutional


def check(config: Any, refuse: Refuse) -> None:
    model, widths = config.model, config.model.filter_widths
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        refuse("model.filter_widths", f"{widths} must consist of distinct positive widths, such as (3, 4, 5).")
    if model.d_model % len(widths):
        refuse("model.d_model", f"{model.d_model} features cannot be divided among {len(widths)} filter widths.")


CONVOLUTIONAL = Architecture(
    "convolutional network (Kim 2014)",
    {"encoder": Convolutional.build},
    frozenset({"model.filter_widths"}),
    check=check,
    whole_texts=True,
)
