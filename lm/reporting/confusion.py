"""Plots the confusion matrix of a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.files import replacing

MOST_WITH_NUMBERS = 20  # maximum number of labels for which the cells are large enough for numbers
MOST_NAMED = 60  # maximum number of labels for which the axes name every label
LONGEST_NAME = 24  # characters
# Fonts in order of preference. Each character is drawn in the first installed font that contains it.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")


def draw_confusion(counts_CC: np.ndarray, labels: Sequence[str], path: Path, title: str) -> None:
    """Writes the result of `confusion_figure` to a PNG file atomically. May raise OSError."""
    figure = confusion_figure(counts_CC, labels, title)
    with replacing(path) as temporary, warnings.catch_warnings():
        # Characters that are missing from all installed fonts are drawn as boxes, without a warning.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # "tight" widens the image if the title would be cut off.
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", pad_inches=0.15)


def confusion_figure(counts_CC: np.ndarray, labels: Sequence[str], title: str) -> Any:
    """Returns a matplotlib Figure of a confusion matrix. A darker cell holds a larger share of the examples in its row.

    If there are few labels, the cells also show counts and shares. `counts_CC[r, c]` is the number of examples with
    the true label r and the predicted label c.
    """
    assert counts_CC.shape == (len(labels), len(labels)) and len(labels), (counts_CC.shape, labels)
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure  # slow to import, and used only here

    size = len(labels)
    shares_CC = counts_CC / np.maximum(1, counts_CC.sum(axis=1, keepdims=True))
    numbered = size <= MOST_WITH_NUMBERS
    side = size * max(0.55, 1.3 - 0.1 * size) if numbered else 9.0  # inches
    installed = set(font_manager.get_font_names())
    with rc_context({"font.family": [name for name in FONTS if name in installed]}):
        figure = Figure(figsize=(max(4.0, side + 2.4), max(3.4, side + 1.6)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
        if numbered:
            fontsize = 11 if size <= 4 else 9 if size <= 10 else 7
            for row, column in np.ndindex(size, size):
                count, share = int(counts_CC[row, column]), float(shares_CC[row, column])
                text = f"{count:,}\n{share:.0%}" if count else "0"
                color = "white" if share > 0.55 else "#1b2733" if count else "#9aa5ae"
                axes.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)
            axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
            axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="minor", length=0)
        else:
            figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8, format="{x:.0%}")
        step = -(-size // MOST_NAMED)
        indices, names = np.arange(size)[::step], [_short(label) for label in labels[::step]]
        side_by_side = max(map(len, names)) * len(names) <= 40
        style: dict[str, Any] = {"fontsize": 10 if numbered else 8, "parse_math": False}
        axes.set_xticks(indices, names, rotation=0 if side_by_side else 90, **style)
        axes.set_yticks(indices, names, **style)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true label")
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", parse_math=False)
    return figure


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= LONGEST_NAME else label[: LONGEST_NAME - 1] + "…"
