"""Settings of convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option


@dataclass(frozen=True)
class ConvolutionalSettings:
    filter_widths: tuple[int, ...] = option((3, 4, 5), affects="shapes")
    """Widths of a convolutional network's filters, in tokens. Each width provides an equal share of the d_model
    features (Kim 2014 uses 100 features per width)."""
