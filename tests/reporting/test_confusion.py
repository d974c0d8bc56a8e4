"""The picture of which label was taken for which: what stands in it, and how its file appears."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from lm.reporting.confusion import confusion_figure, draw_confusion


def made(size):
    return np.random.default_rng(size).integers(0, 3000, (size, size))


def names(axis):
    return [each.get_text() for each in axis.get_ticklabels()]


def test_counts_shares_and_names():
    counts_CC = np.array([[1500, 500, 0], [0, 7, 0], [0, 0, 0]])
    figure = confusion_figure(counts_CC, ["bad", "good", "none"], "a run")
    (axes,) = figure.axes
    texts = {each.get_position(): each.get_text() for each in axes.texts}  # (column, row)
    assert texts == {(c, r): "0" for c in range(3) for r in range(3)} | {
        (0, 0): "1,500\n75%",
        (1, 0): "500\n25%",
        (1, 1): "7\n100%",
    }
    (image,) = axes.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]] and image.get_clim() == (0, 1)
    assert names(axes.xaxis) == names(axes.yaxis) == ["bad", "good", "none"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("predicted", "true label", "a run")


@pytest.mark.parametrize("size", [1, 2, 20])
def test_numbers_lie_within_their_cells(size):
    figure = confusion_figure(np.full((size, size), 88_888), [f"label {i}" for i in range(size)], "")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    cell = axes.transData.transform((1, 1)) - axes.transData.transform((0, 0))
    assert len(axes.texts) == size**2
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.width < abs(cell[0]) and box.height < abs(cell[1])


@pytest.mark.parametrize(("size", "named"), [(21, 21), (60, 60), (61, 31), (200, 50)])
def test_many_labels_have_no_numbers_and_not_all_names(size, named):
    figure = confusion_figure(made(size), [f"label {i}" for i in range(size)], "")
    axes = figure.axes[0]
    assert not axes.texts and len(names(axes.xaxis)) == len(names(axes.yaxis)) == named


def test_any_name_can_be_drawn_without_a_warning(tmp_path, capfd):
    labels = ["$x_1$", "$", "财经", "two\nlines", "long " * 20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(made(5), labels, tmp_path / "new" / "confusion.png", "50 % of $x$ 财经")
    assert (tmp_path / "new" / "confusion.png").read_bytes().startswith(b"\x89PNG\r\n") and capfd.readouterr() == (
        "",
        "",
    )
    shown = names(confusion_figure(made(5), labels, "").axes[0].yaxis)
    assert shown[:4] == ["$x_1$", "$", "财经", "two lines"] and shown[4] == "long long long long lon…"


def test_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    path.write_bytes(b"before")

    def fails(self, file, **_):
        file.write_bytes(b"\x89PNG")
        raise OSError("no space")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="no space"):
        draw_confusion(made(2), ["a", "b"], path, "")
    assert [each.name for each in tmp_path.iterdir()] == ["confusion.png"] and path.read_bytes() == b"before"
