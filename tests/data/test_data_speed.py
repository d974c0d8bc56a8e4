"""The benchmark of the data pipeline runs, and its record holds what the table shows."""

from argparse import Namespace

import pytest

from benchmarks import data_speed


def test_every_part_is_measured_and_compared_with_sentencepiece(tmp_path, monkeypatch):
    monkeypatch.setattr(data_speed, "SECONDS_OF_BATCHES", 0.01)
    monkeypatch.setattr(data_speed, "EXAMPLES", 60)
    monkeypatch.setattr(data_speed, "SHAPES", ((2, 64),))
    (tmp_path / "README").write_text("not a text")
    (tmp_path / "text.txt").write_text("\n".join(f"Line {i} tells of {i * 7} things." for i in range(400)))
    found = data_speed.measure_text(tmp_path, Namespace(megabytes=0.03, rounds=1, workers="1"))
    assert found["text"]["file"] == "text.txt" and found["text"]["repeats"] == 2
    medians = found["medians"]
    stores = ["sentencepiece, unigram", "store, unigram, 1", "sentencepiece, bpe", "store, bpe, 1"]
    assert list(medians) == [*stores, "causal 2 x 64", "labelled 2 x 64", "pairs 2 x 64"]
    assert all(values["seconds"] > 0 for values in medians.values())
    speeds = [medians[name]["MB_per_second"] for name in stores]
    ratios = [1.0, speeds[1] / speeds[0], 1.0, speeds[3] / speeds[2]]
    assert list(found["ratio_to_sentencepiece"].values()) == pytest.approx(ratios, rel=0.01)
    assert data_speed.table_of("text", found).row_count == len(medians)
