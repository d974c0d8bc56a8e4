"""Results as a table in the terminal and as results.json, .csv and .md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """One evaluation of one run."""

    run: str
    step: int  # 0 for the mean or standard deviation of several runs
    split: str
    metrics: dict[str, float]  # such as `loss` and, with several data sources, `SOURCE/loss`
    rows: int
    sequence_length: int | None  # like the stride, None unless rows are windows of a text
    stride: int | None
    seconds: float
    missing: dict[str, str] = field(default_factory=dict)  # the reason for each missing metric
    signatures: dict[str, str] = field(
        default_factory=dict
    )  # exact definitions of metrics that can be defined in several ways
    details: dict[str, Any] = field(default_factory=dict)  # JSON values about data, parameters, devices and versions

    def to_json(self) -> str:
        tokens = self.metrics.get("tokens")
        values = {
            "run": self.run,
            "step": self.step,
            "split": self.split,
            "metrics": {name: finite_or_none(value) for name, value in self.metrics.items()},
            "missing": self.missing,
            "signatures": self.signatures,
            "tokens": None if tokens is None else int(tokens),
            "rows": self.rows,
            "sequence_length": self.sequence_length,
            "stride": self.stride,
            "windowed": self.windowed,
            "seconds": round(self.seconds, 3),
            **self.details,
        }
        return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @property
    def windowed(self) -> bool:
        """Whether windows overlap, so that the first scored tokens of a row also have context."""
        return self.stride is not None and self.sequence_length is not None and self.stride < self.sequence_length


def with_means(results: Sequence[Result]) -> list[Result]:
    """Appends the mean and the sample standard deviation of the shared metrics if there are several results."""
    if len(results) < 2:
        return list(results)
    first = results[0]
    shared = [name for name in first.metrics if all(name in each.metrics for each in results)]
    values = np.array([[each.metrics[name] for name in shared] for each in results], np.float64)
    split = first.split if all(each.split == first.split for each in results) else "all"
    rows = {f"mean of {len(results)}": values.mean(axis=0), "deviation": values.std(axis=0, ddof=1)}
    more = [
        Result(name, 0, split, dict(zip(shared, row.tolist(), strict=True)), 0, None, None, 0.0)
        for name, row in rows.items()
    ]
    return [*results, *more]


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """Prints one row per result and data source, or one block of lines for each if the terminal is too narrow."""
    console = console or Console()
    if not console.is_terminal:  # log files may be wide, and a wrapped table is hard to read
        console = Console(file=console.file, width=max(console.width, 240), highlight=False)
    header, rows = _cells(results)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in header:
        table.add_column(
            "\n".join(name.rsplit(" ", 1)), justify="left" if name in ("run", "split") else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(*map(Text, row))
    unlimited = console.options.update(width=10_000, max_width=10_000)
    if console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table, highlight=False)
    else:
        for row in rows:
            width = max(map(len, header))
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
    notes = _notes(results)
    return text + ("\n" + "\n\n".join(notes) + "\n" if notes else "")


def comma_separated(results: Sequence[Result]) -> str:
    """Formats the results as CSV with all digits, one line per result and data source; missing metrics are empty."""
    names = _metric_names(results)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "step", "split", "source", *names, "rows", "sequence_length", "stride"])
    for result in results:
        for source, metrics in _by_source(result).items():
            values = [repr(metrics[name]) if name in metrics else "" for name in names]
            settings = [result.rows, result.sequence_length, result.stride]  # None becomes an empty cell
            writer.writerow([result.run, result.step, result.split, source, *values, *settings])
    return file.getvalue()


def write_results(directory: Path, stem: str, result: Result) -> list[Path]:
    """Writes STEM.json, .csv and .md into `directory`, all or none of them. May raise OSError."""
    contents = {"json": result.to_json(), "csv": comma_separated([result]), "md": markdown([result])}
    files = {directory / f"{stem}.{suffix}": content for suffix, content in contents.items()}
    write_texts(files)
    return list(files)


def _cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table."""
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
    """Returns the names of all metrics, present or missing, starting with those in METRICS, in its order."""
    found: dict[str, Any] = {}  # a dict keeps the order of the names
    for result in results:
        found |= dict.fromkeys(name for part in _by_source(result).values() for name in part)
        found |= dict.fromkeys(result.missing)
    return [name for name in METRICS if name in found] + [name for name in found if name not in METRICS]


def _by_source(result: Result) -> dict[str, dict[str, float]]:
    """Returns the metrics of the whole split under "", then those of each data source."""
    parts: dict[str, dict[str, float]] = {"": {}}
    for name, value in result.metrics.items():
        source, _, metric = name.rpartition("/")
        parts.setdefault(source, {})[metric] = value
    return parts


def _notes(results: Sequence[Result]) -> list[str]:
    """Returns the reasons for missing metrics, the signatures, and an explanation of the stride."""
    notes = [
        f"No {metric_of(name).heading} for {result.run}, {result.split}: {reason}."
        for result in results
        for name, reason in result.missing.items()
    ]
    signed: dict[tuple[str, str], list[str]] = {}  # results with the same signature share a line
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
            "Stride S of L: windows of L tokens advance by S, and each window scores its last S tokens, so every token "
            "except the first ones is predicted from at least L - S earlier tokens (or from the start of its document)."
        )
    return notes
