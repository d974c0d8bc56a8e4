"""Plots words in the plane of the first two principal components of their vectors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.files import replacing
from lm.reporting.confusion import FONTS


def draw_words(words: Sequence[str], coordinates_W2: np.ndarray, shares: np.ndarray, path: Path, title: str) -> None:
    """Writes the result of `word_figure` to a PNG file atomically. May raise OSError."""
    figure = word_figure(words, coordinates_W2, shares, title)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=130)


def word_figure(words: Sequence[str], coordinates_W2: np.ndarray, shares: np.ndarray, title: str) -> Any:
    """Returns a matplotlib Figure with one labelled point per word.

    Args:
        coordinates_W2: the coordinates of the words.
        shares: the share of the variance along each of the two components.
    """
    assert coordinates_W2.shape == (len(words), 2), (coordinates_W2.shape, len(words))
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure  # slow to import, and used only here

    installed = set(font_manager.get_font_names())
    with rc_context({"font.family": [name for name in FONTS if name in installed]}):
        side = 6.0 + 0.03 * min(len(words), 200)  # inches
        figure = Figure(figsize=(1.25 * side, side), layout="constrained")
        axes = figure.subplots()
        axes.scatter(coordinates_W2[:, 0], coordinates_W2[:, 1], s=14, color="#2f6fb0", zorder=2)
        for word, position in zip(words, coordinates_W2, strict=True):
            axes.annotate(word, position, xytext=(4, 3), textcoords="offset points", fontsize=9, parse_math=False)
        axes.margins(0.12)
        axes.grid(color="#e6eaee", zorder=0)
        for axis, share in zip("xy", shares, strict=True):
            number = "first" if axis == "x" else "second"
            getattr(axes, f"set_{axis}label")(f"{number} principal component ({share:.0%} of the variance)")
        axes.set_title(title, parse_math=False)
    return figure
