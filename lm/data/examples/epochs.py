"""Values that are drawn or planned for a whole epoch, kept while they are likely to be needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

EPOCHS_KEPT = 2  # batches prepared ahead may already belong to the next epoch


class KeptEpochs(Generic[T]):
    """Values by epoch, the last few of them. It pickles empty: what a key decides can be made again."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def __reduce__(self) -> tuple[type[KeptEpochs], tuple[()]]:
        return KeptEpochs, ()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, epoch: int, make: Callable[[int], T]) -> T:
        """Returns the value of this epoch; if it is not kept, it is made by `make(epoch)`."""
        if epoch not in self._values:
            while len(self._values) >= EPOCHS_KEPT:
                self._values.pop(next(iter(self._values)))
            self._values[epoch] = make(epoch)
        return self._values[epoch]
