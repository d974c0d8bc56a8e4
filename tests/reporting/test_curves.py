"""The picture of a run: what is drawn, and that it is written whole."""

import itertools
import math
import struct
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lm.reporting.curves import draw_curves, running_median, series


def run(steps):
    return [
        {"step": s, "train/nll": 2 + 3 / s, "train/learning_rate": 1e-3, "train/tokens_per_second": 1e4}
        | ({"valid/loss": 2.2 + 3 / s} if s % 10 == 0 else {})
        for s in steps
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


@pytest.mark.parametrize("records", [run(range(1, 101)), run([1]), run([1, 2, 3]), [{"step": 5}], []])
def test_png_has_the_same_width_for_any_number_of_points(tmp_path, records):
    path = tmp_path / "curves.png"
    draw_curves(records, path, "a run")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20])[0] == 9 * 130
    assert list(tmp_path.iterdir()) == [path]


def test_panels_labels_and_data(tmp_path, drawn):
    draw_curves(run(range(1, 101)), tmp_path / "curves.png", "my run")
    panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
    assert set(panels) == {"loss (nats/token)", "learning rate", "tokens/s"}
    loss = panels["loss (nats/token)"]
    assert loss.get_xlabel() == "step" and drawn[0].get_suptitle() == "my run"
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert lines["validation, best 2.2300 at step 100"].get_xdata().tolist() == list(range(10, 101, 10))


def test_loss_has_the_heading_of_the_task(tmp_path, drawn):
    draw_curves(run([1, 2]), tmp_path / "curves.png", "reviews", "task_loss")
    assert "loss" in {axes.get_ylabel() for axes in drawn[0].axes}


def translating(steps):
    return [
        record | {"train/seconds": 3.0 * record["step"]} | ({"valid/bleu": step / 4.0, "valid/ter": 90.0 - step / 4.0})
        if (step := record["step"]) % 20 == 0
        else record
        for record in run(steps)
    ]


def test_scores_are_drawn_beside_the_loss_and_the_first_also_by_time(tmp_path, drawn):
    draw_curves(translating(range(1, 101)), tmp_path / "curves.png", "translation")
    panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
    assert set(panels) == {"loss (nats/token)", "score on validation (%)", "learning rate", "tokens/s", "BLEU"}
    lines = {line.get_label(): line for line in panels["score on validation (%)"].get_lines()}
    assert set(lines) == {"BLEU, best 25.00", "TER, lowest 65.00"}
    assert lines["BLEU, best 25.00"].get_xdata().tolist() == [20, 40, 60, 80, 100]
    (line,) = panels["BLEU"].get_lines()
    assert panels["BLEU"].get_xlabel() == "minutes of training"
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5] and line.get_ydata().tolist() == [5, 10, 15, 20, 25]
    assert struct.unpack(">I", (tmp_path / "curves.png").read_bytes()[16:20])[0] == 9 * 130


def test_scores_without_times_have_no_panel_by_time(tmp_path, drawn):
    draw_curves([{"step": 5, "valid/bleu": 0.0}], tmp_path / "curves.png", "one point")
    assert {axes.get_ylabel() for axes in drawn[0].axes} == {"loss (nats/token)", "score on validation (%)"}


@pytest.mark.parametrize(
    ("name", "label", "values", "best"),
    [
        ("token_accuracy", "token accuracy on validation (%)", [50, 75], "best 75.00% at step 10"),
        ("reviews/mcc", "MCC on validation", [0.5, 0.75], "best 0.7500 at step 10"),
        ("perplexity", "perplexity on validation", [0.5, 0.75], "best 0.50 at step 5"),
        ("loss", "", [], ""),
        ("bleu", "", [], ""),
    ],
)
def test_the_metric_of_the_best_step_always_has_a_panel(tmp_path, drawn, name, label, values, best):
    """It needs none of its own if it is drawn anyway."""
    records = [{"step": 5, f"valid/{name}": 0.5, "valid/bleu": 1.0}, {"step": 10, f"valid/{name}": 0.75}]
    draw_curves(records, tmp_path / "curves.png", "a run", best_metric=f"valid/{name}")
    panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
    assert set(panels) == {"loss (nats/token)", "score on validation (%)"} | ({label} if label else set())
    if label:
        (line,) = panels[label].get_lines()
        assert line.get_ydata().tolist() == values and line.get_label() == best


@pytest.mark.parametrize("steps", [100, 20_000])
def test_labels_do_not_overlap(tmp_path, drawn, steps):
    records = [*translating(range(1, 101)), {"step": steps, "valid/loss": 2.1, "valid/token_accuracy": 0.5}]
    draw_curves(records, tmp_path / "curves.png", "a run with a long name", best_metric="valid/token_accuracy")
    (figure,) = drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent(renderer)
            assert box.y0 >= axes.get_window_extent(renderer).y1 - 1 and box.x1 <= figure.bbox.x1
        ticks = [each.get_window_extent(renderer) for each in axes.get_xticklabels() if each.get_text()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(ticks))


def test_one_spike_does_not_flatten_the_rest(tmp_path, drawn):
    records = run(range(1, 101))
    records[50]["train/nll"] = 1e4
    draw_curves(records, tmp_path / "curves.png", "spike")
    assert drawn[0].axes[0].get_ylim()[1] < 10


def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(run([1]), path, "x")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_series_skip_what_is_missing_and_take_the_last_of_a_step():
    records = [
        {"step": 3, "a": 1.0},
        {"step": 1, "a": 2.0},
        {"step": 3, "a": 5.0},
        {"step": 4, "a": None},
        {"step": 5, "a": math.nan},
        {"step": 6, "b": 1},
    ]
    steps, values = series(records, "a")
    assert steps.tolist() == [1, 3] and values.tolist() == [2.0, 5.0]


def test_running_median_follows_a_straight_line_exactly_and_ignores_a_spike():
    line = np.arange(30.0, 0.0, -1.0)
    np.testing.assert_array_equal(running_median(line, 4), line)
    spiked = np.ones(30)
    spiked[10] = 1e6
    np.testing.assert_array_equal(running_median(spiked, 2), np.ones(30))


def test_matplotlib_is_not_imported_before_drawing():
    import subprocess

    code = "import sys, lm.reporting.curves; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
