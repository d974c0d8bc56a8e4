"""Finds the word that each token spells, which is used to match tokens with the words in a vector file."""

from __future__ import annotations

from lm.data.tokenizing.base import Tokenizer


def words_of(tokenizer: Tokenizer) -> list[str | None]:
    """Returns the text of each token without surrounding whitespace, or None for a token that is not a single word.

    Special tokens, unknown tokens, and tokens that consist of several words or only of whitespace are not words.
    """
    words: list[str | None] = [None] * tokenizer.vocab_size
    for token in tokenizer.text_ids.tolist():
        parts = tokenizer.decode([token]).split()
        words[token] = parts[0] if len(parts) == 1 else None
    return words
