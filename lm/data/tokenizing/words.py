"""The text of single tokens, by which they are matched with the words of a vector file."""

from __future__ import annotations

from lm.data.tokenizing.base import Tokenizer


def words_of(tokenizer: Tokenizer) -> list[str | None]:
    """Returns the text of each token without whitespace around it, or None for a token that is not one word.

    Special tokens, unknown tokens, and tokens of several words or of whitespace alone are not words.
    """
    words: list[str | None] = [None] * tokenizer.vocab_size
    for token in tokenizer.text_ids.tolist():
        parts = tokenizer.decode([token]).split()
        words[token] = parts[0] if len(parts) == 1 else None
    return words
