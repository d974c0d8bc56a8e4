"""The settings of a fused attention kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """The static settings of attention. `lm.models.transformer.attention` explains scale and softcap."""

    causal: bool = False  # whether keys after the query are masked
    window: int = 0  # if positive, keys at least this far from the query are masked
    scale: float = 0.0
    softcap: float = 0.0
    max_segments: int = 0  # of a row; 0 if there is no known limit
