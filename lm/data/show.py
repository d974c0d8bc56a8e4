"""Shows what a config's data looks like to the model.

    python -m lm.data.show --config=configs/quickstart.py --n=5

prints a table of the token stores and the first n batches, token by token: what the model reads above
what it has to predict. Each document has its colour and begins with "|"; a target that is not scored is
a dot. With --workdir the run's own tokenizer is used; without, one is made and thrown away.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import rich.box
from absl import flags
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm import command
from lm.batch import Batch
from lm.data.loader import TrainRows
from lm.data.prepare import Prepared, prepare
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.objectives import causal


def define_flags() -> None:
    command.define_config_flag()
    flags.DEFINE_integer("n", 5, "Batches to show.", lower_bound=0)
    flags.DEFINE_integer("rows", 3, "Rows to show of each batch.", lower_bound=1)
    flags.DEFINE_integer("lines", 4, "Lines to show of each row.", lower_bound=1)
    flags.DEFINE_string("workdir", "", "A run directory whose tokenizer is used.")


COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
NOT_SCORED = "·"


def stores_table(prepared: Prepared) -> Table:
    """One line a store: what is in it and what was dropped from its source."""
    table = Table(title="Token stores", title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "source", "documents", "tokens", "bytes", "bytes/token", "words", "unknown", "dropped"):
        left = name in ("split", "source", "dropped")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "dropped")
    for split, stores in prepared.stores.items():
        for name, store in stores.items():
            counts = store.manifest["counts"]
            text_tokens = counts["tokens"] - 2 * counts["documents"]
            dropped = ", ".join(f"{n:,} {reason}" for reason, n in store.manifest["dropped"].items() if n)
            table.add_row(
                split,
                name,
                *(f"{counts[key]:,}" for key in ("documents", "tokens", "bytes")),
                f"{counts['bytes'] / max(1, text_tokens):.2f}",
                *(f"{counts[key]:,}" for key in ("words", "unknown")),
                dropped or "none",
            )
    return table


def row_lines(tokenizer: Tokenizer, batch: Batch, row: int, width: int, most_lines: int) -> list[Text]:
    """A row as pairs of lines, inputs above targets, in columns; then how much was left out, if any."""
    lines: list[Text] = []
    above, below, used = Text("reads    "), Text("predicts "), 9
    tokens, targets, weights, segments = (x[row] for x in (batch.tokens, batch.targets, batch.weights, batch.segments))
    for i in range(len(tokens)):
        mark = "|" if segments[i] and (i == 0 or segments[i] != segments[i - 1]) else " "
        reads = tokenizer.piece(int(tokens[i])) if segments[i] else ""
        predicts = tokenizer.piece(int(targets[i])) if weights[i] > 0 else NOT_SCORED
        cell = max(cell_len(reads), cell_len(predicts), 1)
        if used + 1 + cell > width and used > 9:
            lines += [above, below]
            if len(lines) >= 2 * most_lines:
                return [*lines, Text(f"         ... {len(tokens) - i} more tokens", style="dim")]
            above, below, used = Text(" " * 9), Text(" " * 9), 9
        color = COLORS[(int(segments[i]) - 1) % len(COLORS)] if segments[i] else "dim"
        above.append(mark + reads + " " * (cell - cell_len(reads)), style=color)
        below.append(mark + predicts + " " * (cell - cell_len(predicts)), style=color if weights[i] > 0 else "dim")
        used += 1 + cell
    return [*lines, above, below]


def show(console: Console, prepared: Prepared, num_batches: int, num_rows: int, most_lines: int) -> None:
    """Prints the stores and the first batches of training."""
    console.print(stores_table(prepared))
    config = prepared.config
    rows = TrainRows(config, prepared, causal.features)
    for step in range(num_batches):
        batch = rows.rows(step, range(config.train.batch_size))
        documents = np.mean(batch.segments.max(axis=1))
        console.print()
        console.rule(
            f"step {step}: {batch.shape[0]} rows of {batch.shape[1]} tokens, {documents:.1f} documents a row, "
            f"{np.mean(batch.segments == 0):.1%} padding, {np.mean(batch.weights == 0):.1%} not scored",
            align="left",
        )
        shown = range(min(num_rows, batch.shape[0]))
        for row, (name, epoch, number) in zip(shown, rows.places(step, shown), strict=True):
            console.print(f"row {row}: source {name}, epoch {epoch}, window {number}", style="bold", highlight=False)
            for line in row_lines(prepared.tokenizer, batch, row, console.width, most_lines):
                console.print(line, no_wrap=True, overflow="crop")


def main() -> int:
    config = command.config_from_flags()
    if config is None:
        raise UserError("--config=FILE.py is missing: which data is to be shown?")
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(flags.FLAGS.workdir or folder)
        if flags.FLAGS.workdir and not (workdir / "tokenizer").is_dir():
            raise UserError(
                f"--workdir={flags.FLAGS.workdir}: there is no tokenizer in it; leave the flag out to make one."
            )
        console = Console(width=None if sys.stdout.isatty() else 120)
        show(console, prepare(config, workdir), flags.FLAGS.n, flags.FLAGS.rows, flags.FLAGS.lines)
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
