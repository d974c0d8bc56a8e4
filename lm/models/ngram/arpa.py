"""Reads and writes back-off tables as text in ARPA format, following the conventions of KenLM.

`<s>` precedes each document and is never predicted, `</s>` ends each document, and `<unk>` stands for all unknown
words. Numbers are base-10 logarithms; -99 stands for a probability of 0. The prefix of each n-gram must also be listed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config.ngram import LONGEST
from lm.errors import UserError
from lm.models.ngram.table import ZERO

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LN_10 = math.log(10)
LINES = 1 << 16  # the number of lines written at a time

Table = tuple[np.ndarray, np.ndarray, np.ndarray]  # words int32 (N, k), log10 probabilities (N,), log10 back-offs (N,)


@dataclass(frozen=True)
class Vocabulary:
    """The spelling of each token in an ARPA file.

    Attributes:
        names: one name per id; empty for tokens that are never listed in a file.
        begin, end: the ids of the tokens around each document. They may be the same.
        unknown: the id of the unknown token, if there is one.
    """

    names: tuple[str, ...]
    begin: int
    end: int
    unknown: int | None

    def ids(self) -> dict[str, int]:
        special = {BEGIN: self.begin, END: self.end} | ({} if self.unknown is None else {UNKNOWN: self.unknown})
        return {name: token for token, name in enumerate(self.names) if name} | special


# --- writing ------------------------------------------------------------------------------------------------------


def arpa_lines(params: Mapping[str, Any], order: int, vocabulary: Vocabulary) -> Iterator[str]:
    """Yields the text of an ARPA file in large pieces."""
    names = np.array(vocabulary.names, object)
    names[vocabulary.end] = END
    levels = [{name: np.asarray(each) for name, each in params[f"order_{k}"].items()} for k in range(1, order + 1)]
    listed = _listed_words(levels[0], vocabulary)
    yield "\\data\\\n"
    for k, level in enumerate(levels, start=1):
        yield f"ngram {k}={len(listed) + 1 if k == 1 else len(level['words'])}\n"
    words = np.zeros((1, 0), np.int32)
    for k, level in enumerate(levels, start=1):
        yield f"\n\\{k}-grams:\n"
        log_probs, back_offs = level["log_probs"], level.get("back_offs")
        if k == 1:
            words = np.arange(len(names), dtype=np.int32)[:, None]
            chosen = listed
            back_off = "" if back_offs is None else f"\t{_number(back_offs[vocabulary.begin])}"
            yield f"-99\t{BEGIN}{back_off}\n"
        else:
            parents = np.repeat(np.arange(len(words)), np.diff(levels[k - 2]["begins"]))
            words = np.column_stack([words[parents], level["words"]])
            chosen = np.arange(len(words))
        for begin in range(0, len(chosen), LINES):
            part = chosen[begin : begin + LINES]
            spelled = names[words[part]]
            if k > 1:
                spelled[words[part, 0] == vocabulary.begin, 0] = BEGIN
            ends = [""] * len(part) if back_offs is None else [f"\t{_number(each)}" for each in back_offs[part]]
            lines = zip(log_probs[part], spelled, ends, strict=True)
            yield "".join(f"{_number(log_prob)}\t{' '.join(each)}{end}\n" for log_prob, each, end in lines)
    yield "\n\\end\\\n"


def _listed_words(level: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Returns the ids of the words to list as 1-grams: those that can be predicted or that begin an n-gram."""
    listed = level["log_probs"] > ZERO * (1 - 1e-6)
    if "begins" in level:
        listed |= np.diff(level["begins"]) > 0
    listed[vocabulary.begin] &= vocabulary.begin == vocabulary.end
    listed[[each for each in (vocabulary.end, vocabulary.unknown) if each is not None]] = True
    return np.nonzero(listed)[0]


def _number(natural: float) -> str:
    return f"{max(natural / LN_10, -99.0):.8g}" if natural else "0"


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arpa:
    """The content of an ARPA file. The id of a word is its index among the 1-grams."""

    words: tuple[str, ...]
    tables: tuple[Table, ...]  # one per order

    @property
    def order(self) -> int:
        return len(self.tables)


class _Lines:
    """The lines of a file without line endings, with their numbers for error messages."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self.number, self.line = iter(lines), 0, ""

    def next(self) -> bool:
        """Moves to the next line. Returns False at the end of the file."""
        for line in self._lines:
            self.number += 1
            self.line = line.rstrip(" \t\r\n")
            return True
        return False

    def next_filled(self) -> bool:
        while self.next():
            if self.line.strip():
                return True
        return False

    def error(self, problem: str) -> UserError:
        return UserError(f"line {self.number:,}: {problem}.")


def read_arpa(text: Iterable[str]) -> Arpa:
    """Reads the lines of an ARPA file. Raises UserError, with the line number, if the file is invalid."""
    lines = _Lines(text)
    sizes = _read_header(lines)
    words: dict[str, int] = {}
    tables: list[Table] = []
    for k, size in enumerate(sizes, start=1):
        if lines.line != f"\\{k}-grams:":
            raise lines.error(f"expected the section \\{k}-grams:, not {shown(lines.line)}")
        tables.append(_read_section(lines, k, size, len(sizes), words))
    if lines.line != "\\end\\":
        raise lines.error(f"expected \\end\\, not {shown(lines.line)}")
    if lines.next_filled():
        raise lines.error(f"there is text after \\end\\: {shown(lines.line)}")
    for name in (BEGIN, END):
        if name not in words:
            raise UserError(f"the 1-grams lack {name}, which every language model of documents needs.")
    while len(tables) > 1 and not len(tables[-1][0]):
        tables.pop()
    return Arpa(tuple(words), tuple(tables))


def _read_header(lines: _Lines) -> list[int]:
    while (found := lines.next_filled()) and lines.line.startswith("#"):
        pass
    if not found or lines.line != "\\data\\":
        raise lines.error(f"expected \\data\\, the first line of an ARPA file, not {shown(lines.line)}")
    sizes: list[int] = []
    while lines.next_filled() and (match := re.fullmatch(r"ngram +(\d{1,9}) *= *(\d{1,15}) *", lines.line)):
        if int(match[1]) != len(sizes) + 1:
            raise lines.error(f"expected the number of {len(sizes) + 1}-grams, not {shown(lines.line)}")
        sizes.append(int(match[2]))
    if not sizes:
        raise lines.error("expected the number of 1-grams, such as 'ngram 1=1000'")
    if len(sizes) > LONGEST:
        raise lines.error(f"the order {len(sizes)} is not supported; the highest is {LONGEST}")
    return sizes


def _read_section(lines: _Lines, k: int, size: int, order: int, words: dict[str, int]) -> Table:
    """Reads the n-grams of order k, and moves to the first line after them. Adds the words of 1-grams to `words`."""
    ids: list[int] = []
    log_probs: list[float] = []
    back_offs: list[float] = []
    while lines.next():
        line = lines.line
        if line.startswith("\\"):
            break
        fields = line.replace("\t", " ").split(" ")
        if "" in fields:
            fields = [each for each in fields if each]
            if not fields:
                continue
        if len(fields) not in (k + 1, k + 2):
            raise lines.error(f"expected a logarithm, {k} words and at most one more number, not {shown(line)}")
        log_prob, back_off = _numbers(lines, fields[0], fields[k + 1] if len(fields) > k + 1 else "0")
        if k == order and back_off:
            raise lines.error(f"{k}-grams are the longest and have no back-off weights; remove {fields[k + 1]}")
        if k == 1:
            if fields[1] in words:
                raise lines.error(f"the 1-gram {shown(fields[1])} is listed twice")
            words[fields[1]] = len(words)
        try:
            ids.extend([words[word] for word in fields[1 : k + 1]])
        except KeyError as error:
            raise lines.error(f"the word {shown(error.args[0])} is not among the 1-grams") from None
        log_probs.append(log_prob)
        back_offs.append(back_off)
    else:
        raise lines.error(f"the file ends within the {k}-grams, before \\end\\, so it is incomplete")
    if len(log_probs) != size:
        raise lines.error(f"there are {len(log_probs):,} {k}-grams, but the header says {size:,}")
    return np.array(ids, np.int32).reshape(-1, k), np.array(log_probs), np.array(back_offs)


def _numbers(lines: _Lines, log_prob: str, back_off: str) -> tuple[float, float]:
    try:
        first, second = float(log_prob), float(back_off)
    except ValueError:
        raise lines.error(f"{shown(log_prob)} and {shown(back_off)} must be numbers") from None
    if not (math.isfinite(first) and math.isfinite(second)):
        raise lines.error(f"{shown(log_prob)} and {shown(back_off)} must be finite; write -99 for a probability of 0")
    if first > 0:
        raise lines.error(f"the logarithm {log_prob} is positive, so the probability would exceed 1")
    return first, second


def shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def params_of(arpa: Arpa, ids: np.ndarray, vocab_size: int, begin: int) -> dict[str, Any]:
    """Returns the parameters of the model in an ARPA file (see table.py).

    Args:
        ids: int32: the token id of each word of the file.
        begin: the id of the token that precedes each document.

    Raises UserError if an n-gram is listed twice or its prefix is not listed.
    """
    words, log_probs, back_offs = arpa.tables[0]
    is_begin = np.array([name == BEGIN for name in arpa.words])
    params: dict[str, Any] = {"order_1": {"log_probs": np.full(vocab_size, ZERO, np.float32)}}
    params["order_1"]["log_probs"][ids[~is_begin]] = _natural(log_probs[~is_begin])
    back_offs_V = np.zeros(vocab_size, np.float32)
    back_offs_V[ids[~is_begin]] = _natural(back_offs[~is_begin])
    back_offs_V[begin] = _natural(back_offs[is_begin])[0]
    keys: list[np.ndarray] = [np.arange(vocab_size)]  # for each order: index of the prefix * vocab_size + last word
    for k, (local, log_probs, back_offs) in enumerate(arpa.tables[1:], start=2):
        words, parents = ids[local], ids[local[:, 0]].astype(np.int64)
        for j in range(2, k):
            wanted = parents * vocab_size + words[:, j - 1]
            parents = np.minimum(np.searchsorted(keys[j - 1], wanted), len(keys[j - 1]) - 1)
            if len(missing := np.nonzero(keys[j - 1][parents] != wanted)[0]):
                prefix = [arpa.words[each] for each in local[missing[0]]]
                raise UserError(f"the {k}-gram {' '.join(prefix)!r} is listed, but its prefix of {j} words is not.")
        found = parents * vocab_size + words[:, k - 1]
        order_of_keys = np.argsort(found, kind="stable")
        found = found[order_of_keys]
        if len(twice := np.nonzero(found[1:] == found[:-1])[0]):
            ngram = [arpa.words[each] for each in local[order_of_keys[twice[0]]]]
            raise UserError(f"the {k}-gram {' '.join(ngram)!r} is listed twice.")
        below = params[f"order_{k - 1}"]
        counts = np.bincount(found // vocab_size, minlength=len(keys[-1]))
        below |= {"back_offs": back_offs_V, "begins": np.append(0, np.cumsum(counts)).astype(np.int32)}
        params[f"order_{k}"] = {
            "log_probs": _natural(log_probs[order_of_keys]),
            "words": (found % vocab_size).astype(np.int32),
        }
        back_offs_V = _natural(back_offs[order_of_keys])
        keys.append(found)
    return params


def _natural(log10: np.ndarray) -> np.ndarray:
    return np.maximum(log10 * LN_10, ZERO).astype(np.float32)
