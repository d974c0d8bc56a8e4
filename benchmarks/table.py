"""Rebuilds the results table in README.md from results/*.json: python -m benchmarks.table"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm.evaluation import METRICS
from lm.evaluation.metric import Metric

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: made by python -m benchmarks.table -->", "<!-- end of results -->"
# Losses and similar metrics come before scores.
SHOWN = sorted((each for each in METRICS.values() if each.recorded), key=lambda each: each.higher_is_better)


def results_table() -> str:
    """Returns a Markdown table with one row per record, for its headline, test or first split, in this order."""
    header = ["run", "parameters", "tokens trained", "split", "metrics", "training time", "for comparison"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for path in sorted((ROOT / "results").glob("*.json")):
        record = json.loads(path.read_text())
        if "splits" not in record:  # README.md describes benchmark records in words
            continue
        splits = record["splits"]
        tests = [split for split in splits if split.startswith("test")]
        split = record.get("headline") or next(iter(tests or splits))
        shown = [each for each in SHOWN if each.name in splits[split]]
        cells = [
            f"[{record['name']}](results/{path.name})",
            f"{record['parameters'] / 1e6:.2f} M",
            f"{record['tokens_trained'] / 1e6:.1f} M",
            split,
            ", ".join(f"{_name(each)} {each.show(splits[split][each.name])}" for each in shown),
            _duration(record),
            record["reference"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(metric: Metric) -> str:
    return metric.heading.removesuffix(" (nats/token)")


def with_table(readme: str) -> str:
    """Returns the text of README.md with the table between the two markers replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{results_table()}\n{END}{after}"


def _duration(record: dict[str, Any]) -> str:
    seconds, device = record["training_seconds"], record["hardware"].split(",")[0]
    shown = f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{shown} ({device})" if " x " in device else shown  # runs on accelerators begin like "1 x NVIDIA H200"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
