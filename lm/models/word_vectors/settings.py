"""Checks the settings of word vectors."""

from __future__ import annotations

from typing import Any

from lm.models.architecture import Architecture, Refuse
from lm.models.word_vectors.heads import BLOCK
from lm.models.word_vectors.model import WordVectors


def check(config: Any, refuse: Refuse) -> None:
    model, optimizer, length = config.model, config.optimizer, config.data.sequence_length
    if length % BLOCK:
        refuse("data.sequence_length", f"word vectors need a multiple of {BLOCK}, not {length}.")
    shortest, longest = model.ngram_lengths
    if not 1 <= shortest <= longest:
        refuse("model.ngram_lengths", f"{model.ngram_lengths} is not a range of lengths; use one such as (3, 6).")
    if optimizer.layer_decay != 1.0 or optimizer.freeze_layers:
        name = "freeze_layers" if optimizer.freeze_layers else "layer_decay"
        refuse(f"optimizer.{name}", "word vectors have no layers; list the parameters to freeze in optimizer.freeze.")


WORD_VECTORS = Architecture(
    "word vectors (Mikolov 2013, Bojanowski 2017, Pennington 2014)",
    {"encoder": WordVectors.build},
    frozenset({"model.ngram_buckets", "model.ngram_lengths"}),
    check=check,
    word_vectors=True,
)
