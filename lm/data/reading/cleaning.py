"""What is done to each document before it is tokenised, and how many documents it dropped."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator

from lm.config import CleaningConfig

# A tag starts with a letter, "/" or "!" right after "<", so that "a < b and c > d" stays as it is.
_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>", re.DOTALL)
_INVISIBLE = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TRAILING_SPACE = re.compile(r"[^\S\n]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean_text(config: CleaningConfig, text: str) -> str:
    """One document with everything changed that the config asks for."""
    if config.unicode:
        text = unicodedata.normalize(config.unicode, text)  # type: ignore[arg-type]
    if config.strip_html:
        text = html.unescape(_TAG.sub("", _INVISIBLE.sub("", text)))
    if config.strip_control:
        text = _CONTROL.sub("", text)
    if config.whitespace == "trim":
        text = text.strip()
    elif config.whitespace == "lines":
        text = _EMPTY_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text)).strip("\n")
    elif config.whitespace == "collapse":
        text = " ".join(text.split())
    return text


REASONS = ("too_short", "too_long", "duplicate")


class Cleaner:
    """Cleans the documents of one source and counts, by reason, those that it drops.

    Duplicates are found by a 16-byte digest, which costs some 100 bytes of memory a document.
    """

    def __init__(self, config: CleaningConfig):
        self.config = config
        self.dropped = dict.fromkeys(REASONS, 0)
        self._seen: set[bytes] = set()

    def clean(self, texts: Iterable[str]) -> Iterator[str]:
        """The documents that are kept, cleaned, in their order."""
        for text in texts:
            text = clean_text(self.config, text)
            if self.keeps(text):
                yield text

    def keeps(self, text: str) -> bool:
        """Whether a document that is cleaned already is kept; if not, it is counted."""
        reason = self._reason_to_drop(text)
        if reason:
            self.dropped[reason] += 1
        return not reason

    def _reason_to_drop(self, text: str) -> str | None:
        if len(text) < self.config.min_chars:
            return "too_short"
        if self.config.max_chars and len(text) > self.config.max_chars:
            return "too_long"
        if self.config.deduplicate:
            digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
            if digest in self._seen:
                return "duplicate"
            self._seen.add(digest)
        return None
