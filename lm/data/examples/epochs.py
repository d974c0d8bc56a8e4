"""What is drawn or planned for a whole epoch, kept while it is likely to be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

EPOCHS_KEPT = 2  # batches made ahead may lie in the next epoch already


class KeptEpochs(Generic[T]):
    """Values by epoch, the last few of them. It pickles empty: what a key decides can be made anew."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def __reduce__(self) -> tuple[type[KeptEpochs], tuple[()]]:
        return KeptEpochs, ()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, epoch: int, make: Callable[[int], T]) -> T:
        """The value of this epoch: `make(epoch)`, if it is not kept."""
        if epoch not in self._values:
            while len(self._values) >= EPOCHS_KEPT:
                self._values.pop(next(iter(self._values)))
            self._values[epoch] = make(epoch)
        return self._values[epoch]
