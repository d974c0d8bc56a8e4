"""Cleans raw examples before they are tokenised, and drops some of them, counted by reason."""

from __future__ import annotations

import functools
import hashlib
import html
import re
import unicodedata
from typing import Any, ClassVar

from lm.config import CleaningConfig, PairsConfig
from lm.data.reading.raw import Pair
from lm.errors import UserError

# A tag starts with a letter, "/" or "!" right after "<", so that "a < b and c > d" stays as it is.
_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>", re.DOTALL)
_INVISIBLE = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TRAILING_SPACE = re.compile(r"[^\S\n]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


def clean_text(config: CleaningConfig, text: str) -> str:
    """Returns a text with every change that the config asks for."""
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


class Cleaner:
    """Cleans the documents of one data source, and drops some of them, each for one of the `reasons`."""

    reasons: ClassVar[tuple[str, ...]] = ("too_short", "too_long", "duplicate")

    def __init__(self, config: CleaningConfig):
        self.config = config
        self.dropped = dict.fromkeys(self.reasons, 0)  # number of examples
        self._seen: set[bytes] = set()

    def clean(self, example: Any) -> Any:
        return clean_text(self.config, example)

    def keeps(self, example: Any) -> bool:
        """Returns whether a cleaned example is kept; if not, it is counted in `dropped`."""
        reason = self._reason_to_drop((example,) if isinstance(example, str) else (example.source, example.target))
        if reason:
            self.dropped[reason] += 1
        return not reason

    def _reason_to_drop(self, texts: tuple[str, ...]) -> str | None:
        if min(map(len, texts)) < self.config.min_chars:
            return "too_short"
        if self.config.max_chars and max(map(len, texts)) > self.config.max_chars:
            return "too_long"
        if reason := self._mismatch(*texts):
            return reason
        if self.config.deduplicate:  # some 100 bytes of memory per text
            size = len(self._seen)
            self._seen.add(hashlib.blake2b(repr(texts).encode("utf-8"), digest_size=16).digest())
            return "duplicate" if len(self._seen) == size else None
        return None

    def _mismatch(self, *texts: str) -> str | None:
        return None


class PairCleaner(Cleaner):
    """Cleans pairs, both sides as documents. References after the first cannot be a reason to drop a pair."""

    reasons = ("too_short", "too_long", "ratio", "identical", "source_script", "target_script", "duplicate")

    def __init__(self, config: CleaningConfig, pairs: PairsConfig):
        super().__init__(config)
        self.pairs = pairs
        self._scripts = {
            setting: Script(name, setting) if name else None
            for setting, name in (("source_script", pairs.source_script), ("target_script", pairs.target_script))
        }

    def clean(self, example: Pair) -> Pair:
        references = tuple(clean_text(self.config, each) for each in example.references)
        return Pair(clean_text(self.config, example.source), references)

    def _mismatch(self, *texts: str) -> str | None:
        shorter, longer = sorted(map(len, texts))
        if self.pairs.max_ratio and longer > self.pairs.max_ratio * shorter:
            return "ratio"
        if self.pairs.drop_identical and texts[0] == texts[1]:
            return "identical"
        for (reason, script), text in zip(self._scripts.items(), texts, strict=True):
            if script and not script.has_most_of(text):
                return reason
        return None


class Script:
    """Letters whose Unicode name begins with a word: LATIN, CYRILLIC, CJK, ... Raises UserError if there are none."""

    def __init__(self, name: str, setting: str):
        prefix = name.strip().upper() + " "
        # Kept by letter, because looking up names is slow.
        self._has = functools.cache(lambda letter: unicodedata.name(letter, "").startswith(prefix))
        if not any(self._has(chr(code)) for code in range(0x110000) if chr(code).isalpha()):
            raise UserError(
                f"config.data.pairs.{setting}: {name!r} begins the name of no letter in Unicode; "
                "write e.g. LATIN, CYRILLIC, GREEK, ARABIC, DEVANAGARI, HIRAGANA, HANGUL or CJK."
            )
        self._has.cache_clear()

    def has_most_of(self, text: str) -> bool:
        """Returns whether more than half of the letters belong to the script, or there is no letter."""
        letters = [character for character in text if character.isalpha()]
        return not letters or 2 * sum(map(self._has, letters)) > len(letters)
