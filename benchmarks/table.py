"""Rebuilds the table of results in README.md from results/*.json: python -m benchmarks.table"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: made by python -m benchmarks.table -->", "<!-- end of results -->"
COLUMNS = {
    "loss": "loss (nats/token)",
    "bits_per_byte": "bits/byte",
    "word_perplexity": "word perplexity",
}


def results_table() -> str:
    """Markdown, a line for each record and split."""
    header = ["run", "parameters", "tokens trained", "split", *COLUMNS.values(), "training time", "for comparison"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for path in sorted((ROOT / "results").glob("*.json")):
        record = json.loads(path.read_text())
        for split, metrics in record["splits"].items():
            cells = [
                f"[{record['name']}](results/{path.name})",
                f"{record['parameters'] / 1e6:.2f} M",
                f"{record['tokens_trained'] / 1e6:.1f} M",
                split,
                *(_figure(metrics.get(name)) for name in COLUMNS),
                _duration(record["training_seconds"]),
                record["reference"],
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """README text with the table between its two marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{results_table()}\n{END}{after}"


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if value < 20 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
