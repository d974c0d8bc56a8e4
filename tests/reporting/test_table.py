"""The table on wide and narrow terminals and in files, and the three result files."""

import csv
import io
import json
import math
import os

import pytest
from rich.console import Console

from lm.reporting.table import Result, comma_separated, markdown, print_table, write_results

METRICS = {
    "loss": 1.23456,
    "perplexity": 3.43689,
    "token_accuracy": 0.61803,
    "bits_per_byte": 1.98768,
    "word_perplexity": 123456.7,
    "tokens": 1234567.0,
}


def result(run="tiny", step=2000, split="valid", metrics=METRICS, stride=64, **more):
    return Result(run, step, split, metrics, rows=9, sequence_length=64, stride=stride, seconds=1.23456, **more)


def printed(results, width=160, terminal=True):
    file = io.StringIO()
    print_table(results, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


def lines_of(text):
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_every_metric_has_its_heading_and_format():
    first, second, _, row = lines_of(printed([result()]))
    assert first.split() == ["loss", "token", "word"]  # the first lines of long headings
    below = ["(nats/token)", "perplexity", "bits/byte", "accuracy", "perplexity"]
    assert second.split() == ["run", "step", "split", *below, "tokens", "stride"]
    values = ["1.2346", "3.44", "1.9877", "61.80%", "1.235e+05", "1,234,567"]
    assert row.split() == ["tiny", "2,000", "valid", *values, "64", "of", "64"]


def test_several_runs_are_one_table():
    lines = lines_of(printed([result("a"), result("b", step=7)]))
    assert len(lines) == 5 and lines[3].startswith("a ") and lines[4].startswith("b ")


def test_data_sources_follow_the_whole():
    metrics = METRICS | {"news/loss": 2.0, "news/tokens": 10.0, "talk/loss": 1.0}
    rows = lines_of(printed([result(metrics=metrics)]))[3:]
    assert [row.split()[2:4] for row in rows] == [
        ["valid", "1.2346"],
        ["valid/news", "2.0000"],
        ["valid/talk", "1.0000"],
    ]
    assert rows[2].split()[4:-3] == ["-"] * 5


def test_missing_metric_is_a_dash_with_its_reason():
    metrics = {name: value for name, value in METRICS.items() if name != "bits_per_byte"}
    text = printed([result(metrics=metrics, missing={"bits_per_byte": "the tokenizer is lossy"})])
    assert " - " in lines_of(text)[3]
    assert "No bits/byte for tiny, valid: the tokenizer is lossy." in text


def test_narrow_terminal_gets_blocks_with_every_metric():
    text = printed([result("a"), result("b")], width=40)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.count("loss (nats/token)  1.2346") == 2 and text.count("word perplexity    1.235e+05") == 2


def test_log_file_gets_whole_lines_without_control_characters():
    text = printed([result(run="r" * 60)], width=40, terminal=False)
    assert "\x1b" not in text and "r" * 60 in text
    assert len(lines_of(text)) == 4


def test_brackets_in_names_are_not_markup():
    assert "[bold]x" in printed([result(run="[bold]x")])


def test_stride_is_explained():
    assert "advance by S" in printed([result(stride=16)]) and "16 of 64" in printed([result(stride=16)])
    assert "advance by S" not in printed([result()])


def translations(run="mt", **more):
    metrics = {"bleu": 41.0249, "chrf": 65.5, "ter": 40.126, "exact_match": 7.0, "nll": 1.23456, "tokens": 90.0}
    signatures = {"bleu": "nrefs:1|tok:13a", "rouge": "stem:porter"}
    values = {"metrics": metrics, "rows": 9, "sequence_length": None, "stride": None, "seconds": 1.0}
    return Result(run, 7, "test", **(values | {"signatures": signatures} | more))


def test_text_metrics_have_two_decimals_and_signatures_and_no_stride():
    text = printed([translations()])
    assert "stride" not in text
    row = next(line for line in lines_of(text) if line.startswith("mt "))
    assert row.split() == ["mt", "7", "test", "41.02", "65.50", "40.13", "7.00", "1.2346", "90"]
    assert "BLEU: nrefs:1|tok:13a" in text and "ROUGE: stem:porter" in text
    assert markdown([translations()]).endswith("\nBLEU: nrefs:1|tok:13a\n\nROUGE: stem:porter\n")
    assert lines_of(markdown([translations()]))[0].split(" | ")[3:5] == ["BLEU", "chrF"]


def test_equal_signatures_are_printed_once_and_others_with_their_run():
    same = printed([translations("a"), translations("b")])
    assert same.count("nrefs:1") == 1 and "(a" not in same
    other = printed([translations("a"), translations("b"), translations("c", signatures={"bleu": "tok:zh"})])
    assert "BLEU (a, test; b, test): nrefs:1|tok:13a" in other and "BLEU (c, test): tok:zh" in other


def test_results_with_and_without_stride():
    first, second = lines_of(printed([result("a"), translations("b")], width=250))[3:5]
    assert first.endswith("64 of 64") and second.endswith(" -")


def test_text_metrics_in_files():
    values = json.loads(translations().to_json())
    assert values["signatures"]["bleu"] == "nrefs:1|tok:13a" and values["metrics"]["bleu"] == 41.0249
    assert values["stride"] is None and values["windowed"] is False and values["tokens"] == 90
    assert json.loads(translations(metrics={"bleu": 1.0}).to_json())["tokens"] is None
    (line,) = csv.DictReader(io.StringIO(comma_separated([translations()])))
    assert line["bleu"] == "41.0249" and line["stride"] == ""


def test_json_is_strict_and_complete():
    values = json.loads(
        result(metrics=METRICS | {"perplexity": math.inf}, stride=8, details={"versions": {"jax": "1"}}).to_json(),
        parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"),
    )
    assert values["metrics"] == METRICS | {"perplexity": None}
    assert {key: values[key] for key in ("step", "split", "tokens", "stride", "windowed", "sequence_length")} == {
        "step": 2000,
        "split": "valid",
        "tokens": 1234567,
        "stride": 8,
        "windowed": True,
        "sequence_length": 64,
    }
    assert values["seconds"] == 1.235 and values["versions"] == {"jax": "1"}


def test_csv_keeps_every_digit():
    metrics = {"loss": 1 / 3, "perplexity": math.inf, "tokens": 5.0, "news/loss": 0.1}
    first, second = csv.DictReader(io.StringIO(comma_separated([result(metrics=metrics)])))
    assert float(first["loss"]) == 1 / 3 and float(first["perplexity"]) == math.inf and first["source"] == ""
    assert second["source"] == "news" and second["loss"] == "0.1" and second["perplexity"] == ""


def test_markdown_is_a_table():
    lines = markdown([result("a|b")]).splitlines()
    assert lines[0].startswith("| run | step | split | loss (nats/token) |")
    assert set(lines[1]) <= set("|:- ") and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "a\\|b" in lines[2]


def test_files_are_written_whole(tmp_path, monkeypatch):
    directory = tmp_path / "eval" / "7"
    paths = write_results(directory, "results", result())
    assert [path.name for path in paths] == ["results.json", "results.csv", "results.md"]
    assert sorted(directory.iterdir()) == sorted(paths)
    before = paths[0].read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(directory, "results", result(step=8))
    assert paths[0].read_text() == before and sorted(directory.iterdir()) == sorted(paths)
