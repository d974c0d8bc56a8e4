"""benchmarks/cost_curves.py: the points, the FLOPs and memory of a step, the picture, and the quick check."""

import os
import subprocess
import sys

import pytest
from matplotlib.image import imread

from benchmarks import cost_curves
from benchmarks.record import RESULTS

BASE = {"depth": 6, "width": 384, "length": 256, "batch": 16}
TINY = {"depth": 2, "width": 64, "length": 32, "batch": 4}


def test_each_curve_varies_one_size_around_the_base():
    curves = cost_curves.points(BASE)
    assert [point["depth"] for point in curves["depth"]] == [1, 2, 4, 6, 8, 12]
    assert [point["width"] for point in curves["width"]] == [128, 192, 256, 384, 512, 768]
    assert [point["length"] for point in curves["length"]] == [64, 128, 256, 512, 1024]
    assert [point["batch"] for point in curves["batch"]] == [4, 8, 16, 32, 64]
    for size, points in curves.items():
        assert BASE in points
        assert all({**point, size: BASE[size]} == BASE for point in points)


def test_costs_of_a_step_agree_with_closed_forms():
    """The products of a step are those of the model; the compiler's state is that of AdamW, donated."""
    found = cost_curves.analyse(TINY, "float32")
    assert found["compiled_product_flops"] == pytest.approx(found["model_flops"], rel=0.02)
    floor = found["floor_bytes"]
    assert floor["parameters"] == floor["gradients"] == floor["optimizer"] / 2 == 4 * found["parameters"]
    assert floor["total"] == sum(floor.values()) - floor["total"]
    assert found["compiler_bytes"]["state_and_batch"] == pytest.approx(12 * found["parameters"], rel=0.02)


def test_picture_has_a_panel_for_each_size(tmp_path):
    def cost(point):
        amount = point["depth"] * point["width"] * point["batch"] * point["length"]
        return point | {
            "compiled_product_flops": amount,
            "seconds": amount / 1e6,
            "compiler_bytes": {"state_and_batch": amount, "temporaries": amount},
            "floor_bytes": dict.fromkeys((*cost_curves.FLOOR, "total"), amount),
            "measured_bytes": {"peak_beyond_before": 3 * amount},
            "parameters": amount,
        }

    curves = {size: [cost(point) for point in points] for size, points in cost_curves.points(BASE).items()}
    cost_curves.draw(curves, BASE, tmp_path / "curves.png", "Costs")
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert height > 900 and width > 1300
    assert cost_curves.table_of(curves, "Costs").row_count == sum(len(found) for found in curves.values())


@pytest.mark.exhaustive
def test_quick_check_runs_every_stage_and_writes_no_record():
    before = {path: path.stat().st_mtime for path in RESULTS.iterdir()}
    command = [sys.executable, "-m", "benchmarks.cost_curves", "--quick"]
    done = subprocess.run(command, cwd=RESULTS.parent, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a measurement" in done.stdout and "Nothing was written" in done.stdout
    assert {path: path.stat().st_mtime for path in RESULTS.iterdir()} == before


def test_a_size_that_makes_no_model_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cost_curves", "--width=100"])
    with pytest.raises(SystemExit):
        cost_curves.main()
    assert "--width must be a multiple of 64" in capsys.readouterr().err
