"""Two token stores in step: the sources and the targets of the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm.data.reading.files import hash_of
from lm.data.storing.token_store import TokenStore


@dataclass(frozen=True)
class PairStore:
    """Document i of `source` and document i of `target` are pair i. It pickles as its stores do."""

    source: TokenStore
    target: TokenStore

    @property
    def num_pairs(self) -> int:
        return self.source.num_documents

    @property
    def fingerprint(self) -> str:
        """Hash of both sides' tokens."""
        return hash_of(self.source.fingerprint, self.target.fingerprint)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.target.counts

    @property
    def num_tokens_of_text(self) -> int:
        return self.target.num_tokens_of_text

    @property
    def notes(self) -> Sequence[str]:
        return self.target.notes

    def sides(self) -> Mapping[str, TokenStore]:
        return {"source": self.source, "target": self.target}

    def describe(self, short: Callable[[float], str]) -> str:
        source, target = self.source.counts, self.target.counts
        tokens = f"{short(source['tokens'])} and {short(target['tokens'])} tokens"
        return f"{self.num_pairs:,} pairs, {short(source['bytes'] + target['bytes'])} bytes, {tokens}"

    def record(self) -> dict[str, Any]:
        return {"source": self.source.record(), "target": self.target.record()}
