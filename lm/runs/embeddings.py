"""Initialises token embeddings from a file of word vectors (config.model.embedding_from)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.words import words_of
from lm.data.vector_files import Vectors, dimension_of, read_vectors
from lm.errors import UserError, named_errors
from lm.models.layers import embedding_width
from lm.runs.initialisation import Initial

SETTING = "config.model.embedding_from"


def check_vectors(config: Config) -> None:
    """Raises UserError if the start of the vector file is damaged, or if its vectors do not have the model's width."""
    with named_errors(SETTING):
        size = dimension_of(config.model.embedding_from)
    if size != (width := embedding_width(config.model)):
        name = "embedding_width" if config.model.embedding_width else "d_model"
        problem = f"the vectors in {config.model.embedding_from} have {size} values, but model.{name} is {width}"
        raise UserError(f"{SETTING}: {problem}; set it to {size}, or choose another file.")


def load_embeddings(config: Config, tokenizers: Tokenizers, params: dict[str, Any]) -> Initial:
    """Returns the embeddings in `params`, with the rows of tokens found in the file replaced by the file's vectors.

    A token is looked up by its text without surrounding whitespace or, if the file lacks this text, by its lower-case
    form. All other tokens keep the values in `params`. The static embedding of a two-channel model becomes a copy of
    the result. All processes must call this function. Raises UserError if the file is damaged or shares no word with
    the vocabulary.
    """
    check_vectors(config)
    sides = {"token_embedding": tokenizers.target}
    if "source_embedding" in params:
        sides["source_embedding"] = tokenizers.source
    words = {word for tokenizer in sides.values() for word in words_of(tokenizer) if word is not None}
    with named_errors(SETTING):
        found = read_vectors(config.model.embedding_from, words | {word.lower() for word in words})
    values, lines = {}, []
    for name, tokenizer in sides.items():
        table_VE = params[name]["embedding"]
        ids, rows, total = _matches(tokenizer, found)
        if not ids:
            problem = f"none of the {found.num_words:,} words in {config.model.embedding_from} is in the vocabulary"
            raise UserError(f"{SETTING}: {problem}; choose a file that matches the language and case of the text.")
        vectors_NE = found.vectors_VE[rows]
        insert = jax.jit(partial(_inserted, ids=np.array(ids), vectors_NE=vectors_NE), out_shardings=table_VE.sharding)
        values[name] = {"embedding": insert(table_VE)}
        lines.append(
            f"{name}: {len(ids):,} of {total:,} words ({len(ids) / total:.1%}) have vectors of "
            f"{vectors_NE.shape[1]} values (standard deviation {vectors_NE.std():.3g}) in "
            f"{config.model.embedding_from}; the others are initialised randomly."
        )
    if "static_embedding" in params:
        copy = jax.jit(lambda x: x + 0.0, out_shardings=params["static_embedding"]["embedding"].sharding)
        values["static_embedding"] = {"embedding": copy(values["token_embedding"]["embedding"])}
    return Initial(values, lines)


def _matches(tokenizer: Tokenizer, found: Vectors) -> tuple[list[int], list[int], int]:
    """Returns the tokens with a vector, the row of each token's vector, and the number of tokens that are words."""
    row_of = {word: row for row, word in enumerate(found.words)}
    words = {token: word for token, word in enumerate(words_of(tokenizer)) if word is not None}
    rows = {token: row_of.get(word, row_of.get(word.lower())) for token, word in words.items()}
    matched = {token: row for token, row in rows.items() if row is not None}
    return [*matched], [*matched.values()], len(words)


def _inserted(table_VE: jax.Array, ids: np.ndarray, vectors_NE: np.ndarray) -> jax.Array:
    return table_VE.at[ids].set(vectors_NE)
