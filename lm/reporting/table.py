"""Formats evaluation results as a table in the terminal and as JSON, CSV and Markdown files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.evaluation import METRICS, metric_of
from lm.evaluation.metric import finite_or_none
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.files import write_texts


@dataclass(frozen=True)
class Result:
    """The result of evaluating one run on one split."""

    run: str
    step: int  # 0 if the result is the mean or standard deviation of several runs
    split: str
    metrics: dict[str, float]  # keys: METRIC and, if there are several data sources, SOURCE/METRIC
    rows: int
    sequence_length: int | None  # None, like the stride, unless rows are windows of a text
    stride: int | None
    seconds: float
    missing: dict[str, str] = field(default_factory=dict)  # maps missing metrics to the reasons
    signatures: dict[str, str] = field(default_factory=dict)  # the definition used for each metric that has several
    details: dict[str, Any] = field(default_factory=dict)  # other JSON values: data, parameters, devices, versions
    baselines: tuple[Result, ...] = ()  # scored on the same split; tables list them below the runs

    def to_json(self) -> str:
        values = {
            "run": self.run,
            "step": self.step,
            "split": self.split,
            "metrics": {name: finite_or_none(value) for name, value in self.metrics.items()},
            "missing": self.missing,
            "signatures": self.signatures,
            "tokens": int(self.metrics["tokens"]) if "tokens" in self.metrics else None,
            "rows": self.rows,
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "windowed": self.windowed,
            "seconds": round(self.seconds, 3),
            **self.details,
        }
        if self.baselines:
            values["baselines"] = {each.run: each.of_baseline() for each in self.baselines}
        return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def of_baseline(self) -> dict[str, Any]:
        """Returns the JSON values of a baseline."""
        metrics = {name: finite_or_none(value) for name, value in self.metrics.items()}
        return {"metrics": metrics, "signatures": self.signatures, "seconds": round(self.seconds, 3)}

    @property
    def windowed(self) -> bool:
        """Whether consecutive windows overlap, which gives each scored token more context."""
        return self.stride is not None and self.sequence_length is not None and self.stride < self.sequence_length


def baselines_of(results: Sequence[Result]) -> list[Result]:
    """Returns the baselines of all runs. Runs on the same data share baselines; otherwise, each row names its run."""
    groups = {tuple(map(id, each.baselines)): each for each in reversed(results) if each.baselines}
    distinct = list(reversed(groups.values()))
    if len(distinct) < 2:
        return [baseline for each in distinct for baseline in each.baselines]
    return [replace(one, run=f"{one.run} (data of {each.run})") for each in distinct for one in each.baselines]


def with_means(results: Sequence[Result]) -> list[Result]:
    """Appends the mean and the sample standard deviation of all shared metrics if there is more than one result."""
    if len(results) < 2:
        return list(results)
    shared = [name for name in results[0].metrics if all(name in each.metrics for each in results)]
    values = np.array([[each.metrics[name] for name in shared] for each in results], np.float64)
    split = results[0].split if len({each.split for each in results}) == 1 else "all"

    def summary(name: str, row: np.ndarray) -> Result:
        return Result(name, 0, split, dict(zip(shared, row.tolist(), strict=True)), 0, None, None, 0.0)

    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    return [*results, summary(f"mean of {len(results)}", mean), summary("deviation", deviation)]


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """Prints one row per result and data source. If the terminal is too narrow, prints blocks of lines instead."""
    console = console or Console()
    if not console.is_terminal:  # log files can have long lines, and a wrapped table is hard to read
        console = Console(file=console.file, width=max(console.width, 240), highlight=False)
    header, rows = _cells(results)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in header:
        justify: Any = "left" if name in ("run", "split") else "right"
        table.add_column("\n".join(name.rsplit(" ", 1)), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    unlimited = console.options.update(width=10_000, max_width=10_000)
    if console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table, highlight=False)
    else:
        width = max(map(len, header))
        for row in rows:
            lines = [f"{name:<{width}}  {cell}" for name, cell in zip(header, row, strict=True)]
            console.print("\n".join(lines) + "\n", highlight=False, markup=False, overflow="fold")
    for note in _notes(results):
        console.print("\n" + note, highlight=False, markup=False)


def markdown(results: Sequence[Result]) -> str:
    """Formats the results as a Markdown table."""
    header, rows = _cells(results)
    aligned = [":--" if name in ("run", "split") else "--:" for name in header]
    lines = [header, aligned, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + "".join(f"\n{note}\n" for note in _notes(results))


def comma_separated(results: Sequence[Result]) -> str:
    """Formats results as CSV, one line per result and data source. Numbers are not rounded."""
    names = _metric_names(results)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "step", "split", "source", *names, "rows", "sequence_length", "stride"])
    for result in results:
        for source, metrics in _by_source(result).items():
            values = [repr(metrics[name]) if name in metrics else "" for name in names]
            settings = [result.rows, result.sequence_length, result.stride]  # None is written as an empty cell
            writer.writerow([result.run, result.step, result.split, source, *values, *settings])
    return file.getvalue()


def write_results(directory: Path, stem: str, result: Result) -> list[Path]:
    """Writes STEM.json, STEM.csv and STEM.md to a directory: either all three or none. May raise OSError."""
    paths = [directory / f"{stem}.{suffix}" for suffix in ("json", "csv", "md")]
    rows = [result, *result.baselines]
    write_texts(dict(zip(paths, (result.to_json(), comma_separated(rows), markdown(rows)), strict=True)))
    return paths


def _cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    names = _metric_names(results)
    strides = any(result.stride is not None for result in results)
    header = ["run", "step", "split", *(metric_of(name).heading for name in names), *(["stride"] if strides else [])]
    rows = []
    for result in results:
        for source, metrics in _by_source(result).items():
            split = f"{result.split}/{source}" if source else result.split
            cells = [metric_of(name).show(metrics[name]) if name in metrics else "-" for name in names]
            stride = "-" if result.stride is None else f"{result.stride} of {result.sequence_length}"
            step = f"{result.step:,}" if result.step else "-"
            rows.append([result.run, step, split, *cells, *([stride] if strides else [])])
    return header, rows


def _metric_names(results: Sequence[Result]) -> list[str]:
    """Returns the names of all metrics, even missing ones: first those in METRICS, in that order, then the rest."""
    found: dict[str, Any] = {}  # an ordered set
    for result in results:
        found |= dict.fromkeys(name for part in _by_source(result).values() for name in part)
        found |= dict.fromkeys(result.missing)
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def _by_source(result: Result) -> dict[str, dict[str, float]]:
    """Groups metrics by data source. The key "" comes first and stands for the whole split."""
    parts: dict[str, dict[str, float]] = {"": {}}
    for name, value in result.metrics.items():
        source, _, metric = name.rpartition("/")
        parts.setdefault(source, {})[metric] = value
    return parts


def _notes(results: Sequence[Result]) -> list[str]:
    """Returns the notes below a table: reasons for missing metrics, signatures, and an explanation of strides."""
    notes = [
        f"No {metric_of(name).heading} for {result.run}, {result.split}: {reason}."
        for result in results
        for name, reason in result.missing.items()
    ]
    signed: dict[tuple[str, str], list[str]] = {}  # maps each signature to the results that share it
    for result in results:
        for name, signature in result.signatures.items():
            signed.setdefault((name, signature), []).append(f"{result.run}, {result.split}")
    for (name, signature), where in signed.items():
        agree = len(where) == sum(name in result.signatures for result in results)
        label = TEXT_METRICS[name].heading if name in TEXT_METRICS else name
        of_these = "" if agree else f" ({'; '.join(where)})"
        notes.append(f"{label}{of_these}: {signature}")
    if any(result.windowed for result in results):
        notes.append(
            "Stride S of L: windows of L tokens advance by S tokens, and every window but the first scores only its "
            "last S tokens. Each token is thus predicted from at least L - S earlier tokens or from the start of its "
            "document."
        )
    return notes
