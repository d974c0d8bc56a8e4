"""What every store of a split's examples offers, whether on disk or in memory, one-sided or two-sided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Store(Protocol):
    """The tokenised examples of one source in a split. Picklable."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the tokens (and labels)."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """`documents`, `tokens`, `bytes`, `words`, `unknown`, ...; of a two-sided store those of the target."""
        ...

    @property
    def num_tokens_of_text(self) -> int:
        """Tokens without those around a document."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know: what was dropped, and why."""
        ...

    def sides(self) -> Mapping[str, Store]:
        """The store itself under "", or its sides by name."""
        ...

    def describe(self, short: Callable[[float], str]) -> str:
        """Returns the amount of data in a few words; `short` shortens large numbers."""
        ...

    def record(self) -> dict[str, Any]:
        """Returns JSON values that identify the data in a record of results."""
        ...
