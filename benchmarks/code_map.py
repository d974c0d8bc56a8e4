"""Rebuilds docs/code_map.md from the first line of every file's docstring: python -m benchmarks.code_map"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "code_map.md"


def code_map() -> str:
    """Returns Markdown with a section for each folder of `lm` and a line for each of its files."""
    lines = [
        "# Code map",
        "",
        "The purpose of each file, collected from its docstring by `python -m benchmarks.code_map`.",
    ]
    for folder in sorted({path.parent for path in (ROOT / "lm").rglob("*.py")}):
        lines += ["", f"## {folder.relative_to(ROOT)}", "", "| file | what |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            if doc := ast.get_docstring(ast.parse(path.read_text())):
                lines.append(f"| `{path.name}` | {doc.splitlines()[0]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(code_map())
