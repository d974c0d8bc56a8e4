"""Samples the lines used to train SentencePiece, in bounded memory; the same text always yields the same sample."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator

LONGEST_LINE = 2000  # number of characters; SentencePiece skips lines that are too long
WORD = re.compile(" *[^ ]+")


def split_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yields the lines of all texts; long lines are split. No vocabulary piece spans two of the yielded lines."""
    for text in texts:
        begin = 0
        while begin < len(text):
            end = text.find("\n", begin)
            end = len(text) if end < 0 else end
            while end - begin > LONGEST_LINE:
                cut = text.rfind(" ", begin + 1, begin + LONGEST_LINE)
                cut = cut if cut > 0 else begin + LONGEST_LINE
                yield text[begin:cut]
                begin = cut
            if end > begin:
                yield text[begin:end]
            begin = end + 1


def cut_after_words(lines: Iterable[str]) -> Iterator[str]:
    """Splits lines after every second occurrence of each word so that the unigram trainer considers all repeated words.

    In some releases (0.2.1 and 0.2.3), the trainer considers only substrings that are followed by at least two
    different characters. This excludes most words of a text in which every word is followed by a space. The end of a
    line counts as a character. Splitting has no other effect, because no piece spans more than one word.
    """
    odd: set[str] = set()  # words with an odd number of occurrences so far
    for line in lines:
        begin = 0
        for match in WORD.finditer(line):
            if match[0] in odd:
                odd.remove(match[0])
                yield line[begin : match.end()]
                begin = match.end()
            else:
                odd.add(match[0])
        if begin < len(line):
            yield line[begin:]


def even_sample(lines: Iterable[str], max_bytes: int) -> list[str]:
    """Returns a uniform sample of as many lines as fit into `max_bytes` of UTF-8, in their original order.

    Each line has a pseudo-random key that depends only on its index, and the lines with the smallest keys are kept.
    Therefore, sampling takes one pass and bounded memory, and the same lines always give the same sample.
    """
    kept: list[tuple[int, int, str, int]] = []  # a heap with the largest key first: (-key, line index, line, size)
    total = 0
    for number, line in enumerate(lines):
        size = len(line.encode("utf-8"))
        key = int.from_bytes(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest(), "little")
        if total + size > max_bytes and kept and -key <= kept[0][0]:
            continue  # the sample is full, and this line would be the first to be removed
        heapq.heappush(kept, (-key, number, line, size))
        total += size
        while total > max_bytes and len(kept) > 1:
            total -= heapq.heappop(kept)[3]
    return [line for _, _, line, _ in sorted(kept, key=lambda each: each[1])]
