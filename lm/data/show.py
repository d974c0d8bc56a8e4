"""Shows the data that a config describes, as the model reads it.

    python -m lm.data.show --config=configs/quickstart.py --n=5

This command prints a table of the token stores, followed by the first n batches, token by token. The model's inputs are
shown above its targets, and the source, if there is one, above both. Each document begins with "|" and has its own
colour, which is the same in the source and the target. A dot marks a target that is not scored. Padding at the end of a
row is omitted.

A masked token is shown below the token that replaces it, usually <mask>. A label is shown below the token from which it
is predicted (for next-sentence prediction, the first token). "start" and "end" are shown below the first and last
tokens of an answer. Paired texts are shown one above the other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rich.box
from absl import flags
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.batch import Batch
from lm.config import CleaningConfig, command
from lm.errors import UserError
from lm.runs.prepare import Prepared, prepare
from lm.tasks import task_of
from lm.tasks.task import NOT_SCORED


def define_flags() -> None:
    command.define_config_flag()
    flags.DEFINE_integer("n", 5, "Number of batches to show.", lower_bound=0)
    flags.DEFINE_integer("rows", 3, "Number of rows to show per batch.", lower_bound=1)
    flags.DEFINE_integer("lines", 4, "Maximum number of lines to show per row.", lower_bound=1)
    flags.DEFINE_string("workdir", "", "Run directory whose tokenizer is used. If empty, a temporary one is used.")


COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
MARGIN = 9  # width of the line labels, in columns


def stores_table(prepared: Prepared) -> Table:
    """Returns a table with one row per side of each store, listing its sizes and notes on dropped examples."""
    table = Table(title="Token stores", title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    sizes = ("documents", "tokens", "bytes", "bytes/token", "words", "unknown")
    for name in ("split", "source", *sizes, "dropped"):
        table.add_column(name, justify="right" if name in sizes else "left", no_wrap=name != "dropped")
    for split, stores in prepared.stores.items():
        for name, either in stores.items():
            for side, store in either.sides().items():
                shown = {key: f"{count:,}" for key, count in store.counts.items()}
                shown["bytes/token"] = f"{store.counts['bytes'] / max(1, store.num_tokens_of_text):.2f}"
                label, notes = f"{name}/{side}" if side else name, "; ".join(store.notes) or "none"
                table.add_row(split, label, *(shown[key] for key in sizes), notes)
    return table


def row_lines(prepared: Prepared, batch: Batch, row: int, width: int, most_lines: int) -> list[Text]:
    """Returns the lines that show a row: the source (if there is one), the inputs and the targets.

    Each part is limited to `most_lines` lines, followed by a line with the number of remaining tokens, if any.
    """
    task, lines = task_of(prepared.config), []
    if batch.source is not None:
        tokens, segments = batch.source.tokens[row], batch.source.segments[row]
        source = {task.source_title: _visible(task.preview_inputs(prepared.tokenizers.source, tokens), segments)}
        lines = _columns(source, segments, width, most_lines)
    tokens, segments = batch.tokens[row], batch.segments[row]
    shown = {"reads": _visible(task.preview_inputs(prepared.tokenizer, tokens), segments)}
    targets = task.preview_targets(prepared.config, prepared.tokenizer, batch, row)
    if targets is not None:
        shown["predicts"] = targets[: len(shown["reads"])]
    return lines + _columns(shown, segments, width, most_lines)


def _visible(tokens: list[str], segments: np.ndarray) -> list[str]:
    """Returns the tokens of a row without the padding at its end; padding elsewhere becomes an empty string."""
    length = int(np.max(np.flatnonzero(segments), initial=-1)) + 1
    return [token if segment else "" for token, segment in zip(tokens[:length], segments[:length], strict=True)]


def _columns(tokens: Mapping[str, Sequence[str]], segments: np.ndarray, width: int, most_lines: int) -> list[Text]:
    """Aligns named token sequences by position and returns them as lines wrapped to `width` columns."""

    lines: list[Text] = []
    current, used = [Text(name.ljust(MARGIN)) for name in tokens], MARGIN
    columns = list(zip(*tokens.values(), strict=True))
    for i, column in enumerate(columns):
        mark = "|" if segments[i] and (i == 0 or segments[i] != segments[i - 1]) else " "
        cell = max(1, *map(cell_len, column))
        if used + 1 + cell > width and used > MARGIN:
            lines += current
            if len(lines) >= len(tokens) * most_lines:
                return [*lines, Text(" " * MARGIN + f"... {len(columns) - i} more tokens", style="dim")]
            current, used = [Text(" " * MARGIN) for _ in tokens], MARGIN
        color = COLORS[(int(segments[i]) - 1) % len(COLORS)] if segments[i] else "dim"
        for line, token in zip(current, column, strict=True):
            line.append(mark + token + " " * (cell - cell_len(token)), style="dim" if token == NOT_SCORED else color)
        used += 1 + cell
    return lines + current


def cleaning_steps(cleaning: CleaningConfig) -> list[str]:
    """Returns the cleaning settings that differ from their defaults. A list of words is represented by its length."""
    usual, found = vars(CleaningConfig()), []
    for name, value in vars(cleaning).items():
        if value != usual[name]:
            words = isinstance(value, str) and "\n" in value
            found.append(f"{name} ({len(value.split()):,} words)" if words else f"{name}={value!r}")
    return found


def show(console: Console, prepared: Prepared, num_batches: int, num_rows: int, most_lines: int) -> None:
    console.print(stores_table(prepared))
    config, notes = prepared.config, prepared.overlap_lines()
    for split, stores in prepared.stores.items():
        if counts := getattr(next(iter(stores.values())), "label_counts", {}):
            labels = ", ".join(f"{label} {counts.get(label, 0):,}" for label in config.data.labels)
            notes.append(f"{split} labels: {labels}")
    rows = task_of(config).train_rows(config, prepared.tokenizer, prepared.stores["train"])
    evaluated = task_of(config).eval_rows(config, prepared.tokenizer, prepared.stores["valid"])
    of_valid = {name: each.examples.notes for name, each in evaluated.items()}
    for split, named in (("train", rows.notes()), ("valid", of_valid)):
        notes += [f"{split}/{name}: {note}" for name, found in named.items() for note in found]
    if steps := cleaning_steps(config.data.cleaning):
        console.print(f"cleaning: {', '.join(steps)}", highlight=False, markup=False)
    for note in notes:
        console.print(note, highlight=False, markup=False)
    for step in range(num_batches):
        batch = rows.rows(step, range(config.train.batch_size))
        console.print()
        console.rule(f"step {step}: {_summary(batch)}", align="left")
        shown = range(min(num_rows, batch.shape[0]))
        for row, (name, epoch, number) in zip(shown, rows.locate(step, shown), strict=True):
            title = f"row {row}: source {name}, epoch {epoch}, {rows.kind} {number}"
            console.print(title, style="bold", highlight=False)
            for line in row_lines(prepared, batch, row, console.width, most_lines):
                console.print(line, no_wrap=True, overflow="crop")


def _summary(batch: Batch) -> str:
    length, padding = f"{batch.shape[1]}", f"{np.mean(batch.segments == 0):.1%} padding"
    if batch.source is None:
        padding += f", {np.mean(batch.weights == 0):.1%} not scored"
    else:
        segments = batch.source.segments
        length, padding = f"{segments.shape[1]} + {length}", f"{np.mean(segments == 0):.1%} + {padding}"
    documents = np.mean(batch.segments.max(axis=1))
    return f"{batch.shape[0]} rows of {length} tokens, {documents:.1f} documents per row, {padding}"


def main() -> int:
    config = command.config_from_flags()
    if config is None:
        raise UserError("--config=FILE.py is missing; the config determines which data is shown.")
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(flags.FLAGS.workdir or folder)
        if flags.FLAGS.workdir and not (workdir / "tokenizer").is_dir():
            problem = f"--workdir={flags.FLAGS.workdir}: the directory contains no tokenizer"
            raise UserError(f"{problem}; omit the flag to use a temporary directory.")
        console = Console(width=None if sys.stdout.isatty() else 120)
        show(console, prepare(config, workdir), flags.FLAGS.n, flags.FLAGS.rows, flags.FLAGS.lines)
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
