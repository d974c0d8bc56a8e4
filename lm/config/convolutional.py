"""Settings of convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ConvolutionalSettings:
    filter_widths: tuple[int, ...] = option((3, 4, 5), affects="shapes")
    """Numbers of tokens that the filters of a convolutional network read. Each width has an equal share of the d_model
    features (Kim 2014: 100 each)."""
