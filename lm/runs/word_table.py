"""Loads word vectors from a run directory or from a vector file."""

from __future__ import annotations

from pathlib import Path

from lm.data.vector_files import read_vectors
from lm.errors import UserError
from lm.evaluation.word_vectors import WordTable
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of


def table_of_run(root: Path, step: str) -> tuple[WordTable, str]:
    """Returns the word vectors of a run and a description of them. Any model with a token embedding has word vectors.

    Args:
        step: "best", "latest" or a number.
    """
    directory = RunDirectory.existing(root)
    config = directory.load_config()
    tokenizer = load_tokenizers(config, directory.root).target
    ema = config.optimizer.ema_decay > 0
    number = int(step) if step.isdecimal() else None
    with directory.open_checkpoints(config) as checkpoints:
        params, found = checkpoints.restore_params(None, "best" if step == "best" else number, ema=ema)
    table = task_of(config).word_table(config, tokenizer, params)
    if not table.words:
        raise UserError(f"--workdir={root}: its {tokenizer.kind} tokenizer has no words, so it has no word vectors.")
    return table, f"{root}, step {found:,}"


def table_of_file(path: str, limit: int = 0) -> tuple[WordTable, str]:
    """Returns the word vectors in a file (only the first `limit`, unless it is 0) and a description of them."""
    found = read_vectors(path, limit=limit)
    return WordTable(found.words, found.vectors_VE), f"{path} ({found.format})"
