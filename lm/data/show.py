"""Shows what a config's data looks like to the model.

    python -m lm.data.show --config=configs/quickstart.py --n=5

prints a table of the token stores and the first n batches, token by token: what the model reads above
what it has to predict, and, where there are two sides, the source above both. Each document has its
colour and begins with "|", the same on both sides; a target that is not scored is a dot, and padding at
the end is not shown. Hidden tokens are read as <mask>, as others or as they are, and stand below; where a second
text may follow the first, that stands below the first token. A label stands below the token from which it is told,
start and end below those of an answer, and a text above the one that belongs to it. With --workdir the run's own
tokenizer is used; without, one is made and thrown away.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.box
from absl import flags
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.batch import Batch
from lm.config import Config, command
from lm.data.packing.packed_rows import PackedTrainRows
from lm.data.storing.label_store import LabelledStore
from lm.data.storing.pair_store import PairStore
from lm.data.storing.prepare import Prepared, Store, prepare
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.tokenizers import Tokenizer
from lm.errors import UserError
from lm.rows import train_rows


def define_flags() -> None:
    command.define_config_flag()
    flags.DEFINE_integer("n", 5, "Batches to show.", lower_bound=0)
    flags.DEFINE_integer("rows", 3, "Rows to show of each batch.", lower_bound=1)
    flags.DEFINE_integer("lines", 4, "Lines to show of each row.", lower_bound=1)
    flags.DEFINE_string("workdir", "", "A run directory whose tokenizer is used.")


COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
NOT_SCORED = "·"
MASK = "<mask>"
FOLLOWS = ("other text", "follows")  # what the label of a next-sentence pair says of the second text
ENDS_OF_ANSWER = ("", "start", "end", "start+end")
NO_ANSWER = "no answer"  # in place of both ends, below the first token
MARGIN = 9  # columns that the names of the lines take


def stores_table(prepared: Prepared) -> Table:
    """One line a store, or a side of it: what is in it and what was dropped from its source."""
    table = Table(title="Token stores", title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("split", "source", "documents", "tokens", "bytes", "bytes/token", "words", "unknown", "dropped"):
        left = name in ("split", "source", "dropped")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "dropped")
    for split, stores in prepared.stores.items():
        for name, store in [side for item in stores.items() for side in _sides(*item)]:
            if isinstance(store, LabelledStore):
                counts, text_tokens = {**store.counts, "documents": store.counts["examples"]}, store.counts["tokens"]
                dropped = "; ".join(store.notes)
            else:
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


def label_lines(prepared: Prepared) -> list[str]:
    """How often each label comes, a line for each split; none where there are no labels."""
    lines = []
    for split, stores in prepared.stores.items():
        first = next(iter(stores.values()))
        if isinstance(first, LabelledStore) and first.label_counts:
            counts = (f"{label} {first.label_counts.get(label, 0):,}" for label in prepared.config.data.labels)
            lines.append(f"{split} labels: {', '.join(counts)}")
    return lines


def _sides(name: str, store: Store) -> list[tuple[str, TokenStore | LabelledStore]]:
    if isinstance(store, PairStore):
        return [(f"{name}/source", store.source), (f"{name}/target", store.target)]
    return [(name, store)]


def row_lines(prepared: Prepared, batch: Batch, row: int, width: int, most_lines: int) -> list[Text]:
    """A row as lines in columns, inputs above targets, and before them the source (or partner), where there is one.

    `most_lines` is for each of these; what is left out is counted.
    """
    objective = prepared.config.objective
    tokens, segments = batch.tokens[row], batch.segments[row]
    reads = _visible(prepared.tokenizer, tokens, segments)
    predicts = _targets(prepared.config, prepared.tokenizer, batch, row)
    if objective.name == "masked":
        mask_id = prepared.tokenizer.mask_id
        reads = [MASK if t == mask_id else piece for piece, t in zip(reads, tokens, strict=False)]
    if objective.next_sentence:
        for first in np.flatnonzero((batch.positions[row] == 0) & (segments > 0)):
            predicts[first] = FOLLOWS[int(batch.targets[row][first])]
    alone = objective.name == "contrastive"  # nothing is predicted of a token
    below = {} if alone else {"predicts": predicts[: len(reads)]}
    lines = _columns({"reads": reads, **below}, segments, width, most_lines)
    if batch.source is not None:
        source_segments = batch.source.segments[row]
        source = _visible(prepared.source_tokenizer, batch.source.tokens[row], source_segments)
        lines = _columns({"partner" if alone else "source": source}, source_segments, width, most_lines) + lines
    return lines


def _targets(config: Config, tokenizer: Tokenizer, batch: Batch, row: int) -> list[str]:
    """What is to be told of each token."""
    found = []
    for target, weight, position in zip(batch.targets[row], batch.weights[row], batch.positions[row], strict=True):
        if weight == 0:
            found.append(NOT_SCORED)
        elif config.objective.name == "regression":
            found.append(f"{float(target):g}")
        elif config.model.head == "classes":
            found.append(config.data.labels[int(target)])
        elif config.model.head == "span":
            found.append(ENDS_OF_ANSWER[int(target)] if position else NO_ANSWER)
        else:
            found.append(tokenizer.piece(int(target)))
    return found


def _visible(tokenizer: Tokenizer, tokens: np.ndarray, segments: np.ndarray) -> list[str]:
    """Pieces of a row up to the padding at its end."""
    length = int(np.max(np.flatnonzero(segments), initial=-1)) + 1
    return [tokenizer.piece(int(t)) if s else "" for t, s in zip(tokens[:length], segments[:length], strict=True)]


def _columns(pieces: dict[str, Sequence[str]], segments: np.ndarray, width: int, most_lines: int) -> list[Text]:
    """Pieces of one place below each other, each under its line's name; wrapped, and cut after `most_lines`."""

    def begin(names: Sequence[str]) -> list[Text]:
        return [Text(name.ljust(MARGIN)) for name in names]

    lines: list[Text] = []
    current, used = begin(list(pieces)), MARGIN
    columns = list(zip(*pieces.values(), strict=True))
    for i, column in enumerate(columns):
        mark = "|" if segments[i] and (i == 0 or segments[i] != segments[i - 1]) else " "
        cell = max(1, *map(cell_len, column))
        if used + 1 + cell > width and used > MARGIN:
            lines += current
            if len(lines) >= len(pieces) * most_lines:
                return [*lines, Text(" " * MARGIN + f"... {len(columns) - i} more tokens", style="dim")]
            current, used = begin([""] * len(pieces)), MARGIN
        color = COLORS[(int(segments[i]) - 1) % len(COLORS)] if segments[i] else "dim"
        for line, piece in zip(current, column, strict=True):
            line.append(mark + piece + " " * (cell - cell_len(piece)), style="dim" if piece == NOT_SCORED else color)
        used += 1 + cell
    return lines + current


def show(console: Console, prepared: Prepared, num_batches: int, num_rows: int, most_lines: int) -> None:
    """Prints the stores and the first batches of training."""
    console.print(stores_table(prepared))
    for counts in label_lines(prepared):
        console.print(counts, highlight=False, markup=False)
    config = prepared.config
    rows = train_rows(config, prepared)
    for name, notes in rows.notes().items() if isinstance(rows, PackedTrainRows) else ():
        for note in notes:
            console.print(f"{name}: {note}", highlight=False, markup=False)
    for step in range(num_batches):
        batch = rows.rows(step, range(config.train.batch_size))
        console.print()
        console.rule(f"step {step}: {_summary(batch)}", align="left")
        shown = range(min(num_rows, batch.shape[0]))
        kind = "window" if config.objective.name == "causal" else "packed row"
        for row, (name, epoch, number) in zip(shown, rows.places(step, shown), strict=True):
            console.print(f"row {row}: source {name}, epoch {epoch}, {kind} {number}", style="bold", highlight=False)
            for line in row_lines(prepared, batch, row, console.width, most_lines):
                console.print(line, no_wrap=True, overflow="crop")


def _summary(batch: Batch) -> str:
    documents = f"{np.mean(batch.segments.max(axis=1)):.1f} documents a row"
    padding = f"{np.mean(batch.segments == 0):.1%} padding"
    if batch.source is None:
        not_scored = f"{np.mean(batch.weights == 0):.1%} not scored"
        return f"{batch.shape[0]} rows of {batch.shape[1]} tokens, {documents}, {padding}, {not_scored}"
    source = batch.source.segments
    return (
        f"{batch.shape[0]} rows of {source.shape[1]} + {batch.shape[1]} tokens, {documents}, "
        f"{np.mean(source == 0):.1%} + {padding}"
    )


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
