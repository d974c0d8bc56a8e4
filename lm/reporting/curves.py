"""Plots the loss and the scores of a run and, below them, the learning rate, the speed, and a score against time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.evaluation import METRICS, metric_of
from lm.evaluation.metric import Metric
from lm.files import replacing

# The training loss and the validation loss are both the plain cross-entropy, without label smoothing or z-loss.
TRAIN, VALID, RATE, SPEED = "train/nll", "valid/loss", "train/learning_rate", "train/tokens_per_second"
SECONDS = "train/seconds"
COLUMNS = 6  # a multiple of 2 and 3, so that one, two or three panels get equal widths
BLUE, ORANGE, GREY = "#1f6fb4", "#d95f02", "#5f6b76"
COLORS = (ORANGE, BLUE, "#2a8f5b", "#8b4fb0", "#b08900", "#c2185b", "#00838f", "#6d4c41", GREY)

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl, each with the key `step`


def draw_curves(records: Records, path: Path, title: str, loss: str = "loss", best_metric: str = VALID) -> None:
    """Plots the metrics of a run. Writes a PNG file atomically.

    Metrics without values are not plotted. If the records contain `train/seconds`, the first score is also plotted
    against training time in minutes. The loss axis is labelled with the heading of the metric `loss`. `best_metric`,
    which determines the best step, is always plotted.
    """
    from matplotlib.figure import Figure  # slow to import, and used only here

    def is_known(name: str) -> bool:
        return len(series(records, name)[0]) > 0

    scores = [each for each in METRICS.values() if each.drawn and is_known(f"valid/{each.name}")]
    above = ["loss", "scores"] if scores else ["loss"]
    if best_metric not in (VALID, *(f"valid/{each.name}" for each in scores)) and is_known(best_metric):
        above.append("best")
    below = [name for name in (RATE, SPEED) if is_known(name)]
    below += ["minutes"] if scores and is_known(SECONDS) else []
    figure = Figure(figsize=(9, 6.8 if below else 5.0), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    rows: list[Any] = [[name for name in row for _ in range(COLUMNS // len(row))] for row in (above, below) if row]
    panels = figure.subplot_mosaic(rows, height_ratios=[3, 1] if below else [1])
    last = max((int(record["step"]) for record in records), default=1)
    for axes in panels.values():
        axes.set_xlim(0, 1.02 * max(1, last))
    _draw_loss(panels["loss"], records, metric_of(loss).heading)
    if scores:
        _draw_scores(panels["scores"], records, scores)
    if "best" in above:
        _draw_best(panels["best"], *series(records, best_metric), metric_of(best_metric.rpartition("/")[2]))
    for name, label in ((RATE, "learning rate"), (SPEED, "tokens/s")):
        if name in below:
            _draw_small(panels[name], *series(records, name), label)
    if "minutes" in below:
        _draw_by_time(panels["minutes"], records, scores[0])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and finite values of a metric, ordered by step. For a repeated step, the last value is used."""
    found = ((int(record["step"]), record.get(name)) for record in records)
    values = {step: value for step, value in found if isinstance(value, (int, float)) and math.isfinite(value)}
    steps = sorted(values)
    return np.array(steps, np.int64), np.array([values[step] for step in steps], np.float64)


def running_median(values: np.ndarray, half_width: int) -> np.ndarray:
    """Computes a centred running median over windows of 2 * `half_width` + 1 values. Windows shrink near the ends.

    A centred window does not lag behind a falling curve, and a median ignores single spikes.
    """
    reach = np.minimum(half_width, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)], np.float64)


def _draw_loss(axes: Any, records: Records, label: str) -> None:
    steps, losses = series(records, TRAIN)
    valid_steps, valid_losses = series(records, VALID)
    if len(steps) >= 20:
        axes.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
        middle = running_median(losses, max(2, len(losses) // 60))
        axes.plot(steps, middle, color=BLUE, linewidth=1.8, label="training (running median)")
    elif len(steps):
        _plot(axes, steps, losses, BLUE, "training", markersize=3)
    if len(valid_steps):
        best = int(np.argmin(valid_losses))
        named = f"validation, best {valid_losses[best]:.4f} at step {valid_steps[best]:,}"
        _plot(axes, valid_steps, valid_losses, ORANGE, named, markersize=4.5)
    _limit_spikes(axes, np.concatenate([losses, valid_losses]))
    _frame(axes, label)
    if len(steps) or len(valid_steps):
        _legend_above(axes)
    else:
        axes.text(0.5, 0.5, "no loss was recorded", transform=axes.transAxes, ha="center", color=GREY)


def _draw_scores(axes: Any, records: Records, scores: Sequence[Metric]) -> None:
    for metric, color in zip(scores, COLORS, strict=False):
        steps, values = series(records, f"valid/{metric.name}")
        values = metric.percent(values)
        best = f"best {np.max(values):.2f}" if metric.higher_is_better else f"lowest {np.min(values):.2f}"
        _plot(axes, steps, values, color, f"{metric.heading}, {best}")
    axes.set_ylim(bottom=0)
    _frame(axes, "score on validation (%)")
    _legend_above(axes)


def _draw_best(axes: Any, steps: np.ndarray, values: np.ndarray, metric: Metric) -> None:
    best = int(np.argmax(values) if metric.higher_is_better else np.argmin(values))
    _plot(axes, steps, metric.percent(values), ORANGE, f"best {metric.show(values[best])} at step {steps[best]:,}")
    _frame(axes, f"{metric.heading} on validation{' (%)' if metric.is_percentage else ''}")
    _legend_above(axes)


def _draw_by_time(axes: Any, records: Records, metric: Metric) -> None:
    """Plots a score against training time in minutes. Unknown times are interpolated between known times."""
    from matplotlib.ticker import MaxNLocator

    steps, scores = series(records, f"valid/{metric.name}")
    minutes = np.interp(steps, *series(records, SECONDS)) / 60
    _draw_small(axes, minutes, metric.percent(scores), metric.heading)
    axes.set_xlim(0, 1.02 * float(np.max(minutes)) or 1.0)
    axes.set_xlabel("minutes of training")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter("{x:,g}")


def _draw_small(axes: Any, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.plot(steps, values, color=GREY, linewidth=1.2, marker="o" if len(steps) < 20 else None, markersize=2.5)
    axes.set_ylim(0, float(np.max(values)) * 1.1 or 1.0)
    if label == "tokens/s":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _frame(axes, label)


def _plot(axes: Any, steps: np.ndarray, values: np.ndarray, color: str, label: str, markersize: float = 3.5) -> None:
    axes.plot(steps, values, color=color, linewidth=1.5, marker="o", markersize=markersize, label=label)


def _frame(axes: Any, label: str) -> None:
    """Labels the axes, adds a grid and limits the number of ticks, so that their labels do not overlap."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.7)
    ticks = max(4, round(8 * len(axes.get_subplotspec().colspan) / COLUMNS))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(labelsize=9)


def _legend_above(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)


def _limit_spikes(axes: Any, losses: np.ndarray) -> None:
    """Limits the y axis if a few very high losses would flatten the rest of the curve."""
    if len(losses) < 20:
        return
    low, usual = float(np.min(losses)), float(np.percentile(losses, 98))
    if float(np.max(losses)) - low > 3 * (usual - low) > 0:
        axes.set_ylim(low - 0.08 * (usual - low), low + 1.3 * (usual - low))
