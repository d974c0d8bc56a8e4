"""Two token stores in step: the sources and the targets of the same pairs."""

from __future__ import annotations

from dataclasses import dataclass

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
