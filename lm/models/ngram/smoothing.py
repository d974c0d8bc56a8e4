"""Smoothed probabilities of n-grams (Chen & Goodman 1998).

Every method interpolates: if h' is the context h without its first token,

    p(w | h) = direct(h, w) + reserved(h) p(w | h')

where `direct` and `reserved` are computed from the counts of one order, and reserved(h) is the probability mass left
for the next lower order. Below order 1, p is uniform over the V tokens that can be predicted. Add-k smoothing uses this
uniform distribution in place of every p(w | h').
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config.ngram import NgramSettings
from lm.errors import UserError
from lm.models.ngram.counting import Level
from lm.models.ngram.interpolation import estimated_lambdas

WHERE = "config.model.ngram"
BLOCK = 1 << 22  # the number of n-grams whose probabilities are computed at a time


@dataclass(frozen=True)
class Estimate:
    """The probabilities of the N n-grams of one order, float64.

    Attributes:
        probabilities: (N,): the interpolated p(w | h) of each n-gram.
        reserved: (M,): reserved(h) of each context h, an n-gram of the next lower order; 1 if nothing follows h.
        discounts: (4,): the amounts subtracted from the counts 0, 1, 2 and 3 or more; None if there are no discounts.
    """

    probabilities: np.ndarray
    reserved: np.ndarray
    discounts: np.ndarray | None


@dataclass(frozen=True)
class Counts:
    """The counts for some consecutive contexts of one order, from which a method computes `direct` and `reserved`.

    Attributes:
        counts: int (N,): raw or, for Kneser-Ney, adjusted.
        num_words: V.
        discounts: (4,): the amounts to subtract from the counts 0, 1, 2 and 3 or more; None if there are no discounts.
    """

    order: int
    level: Level
    counts: np.ndarray
    num_words: int
    discounts: np.ndarray | None

    @property
    def totals(self) -> np.ndarray:
        """The sum of the counts of each context, (M,)."""
        return self.level.sums(self.counts)

    def shares(self) -> np.ndarray:
        """Returns the relative frequency of each n-gram in its context, (N,)."""
        return _divided(self.counts, self.of_parents(self.totals))

    def of_parents(self, values: np.ndarray) -> np.ndarray:
        """Returns the value of each n-gram's context: (M,) -> (N,)."""
        return np.repeat(values, np.diff(self.level.begins))


Method = Callable[[NgramSettings, Counts], tuple[np.ndarray, np.ndarray]]  # returns (direct (N,), reserved (M,))


@dataclass(frozen=True)
class Smoothing:
    """A method that can be selected with model.ngram.smoothing.

    Attributes:
        method: returns `direct` and `reserved` for one order; None if the probabilities come from a file.
        reads: the settings in NgramSettings that this method reads but at least one other does not.
        adjusts: whether, in all orders but the highest, the count of an n-gram is the number of distinct tokens before
            it, not the number of its occurrences.
        prepare: takes the settings, the counts of all orders, and V; returns the settings with estimated values.
        discounts: returns the discounts (4,) of an order, computed from its counts of counts (see `numbers_of`).
        shares_equally: whether the reserved probability is shared equally among all tokens, not in proportion to the
            probabilities of the next lower order.
    """

    doc: str
    method: Method | None
    reads: tuple[str, ...] = ()
    adjusts: bool = False
    prepare: Callable[[NgramSettings, Sequence[Level], int], NgramSettings] = lambda settings, *given: settings
    discounts: Callable[[NgramSettings, int, np.ndarray], np.ndarray] | None = None
    shares_equally: bool = False


def estimates(levels: Sequence[Level], settings: NgramSettings, possible: np.ndarray) -> Iterator[Estimate]:
    """Yields the estimate of each order, from 1 up. Raises UserError if the method cannot use the counts.

    Args:
        settings: the settings that `prepare` returned.
        possible: bool (V,): the tokens that can be predicted. The others have the probability 0.
    """
    smoothing, num_words = SMOOTHINGS[settings.smoothing], int(possible.sum())
    assert smoothing.method is not None
    uniform = 1.0 / num_words
    lower = np.full(1, uniform)
    for order, level in enumerate(levels, start=1):
        counts = _adjusted(levels, order) if smoothing.adjusts else level.counts
        discounts = smoothing.discounts and smoothing.discounts(settings, order, numbers_of(counts))
        probabilities, reserved = np.empty(len(counts)), np.empty(len(level.begins) - 1)
        for contexts, ngrams in level.blocks(BLOCK):
            part = Counts(order, level.part(contexts, ngrams), counts[ngrams], num_words, discounts)
            direct, left = smoothing.method(settings, part)
            reserved[contexts] = np.where(part.totals == 0, 1.0, left)
            shared: Any = uniform if smoothing.shares_equally else lower[part.level.suffixes]
            probabilities[ngrams] = direct + part.of_parents(reserved[contexts]) * shared
        if order == 1:
            probabilities[~possible] = 0.0
        yield Estimate(probabilities, reserved, discounts)
        lower = probabilities


def numbers_of(counts: np.ndarray) -> np.ndarray:
    """Returns the numbers of n-grams with the counts 0, 1, 2, 3, 4 and 5 or more, int (6,)."""
    return np.bincount(np.minimum(counts, 5), minlength=6)


def _adjusted(levels: Sequence[Level], order: int) -> np.ndarray:
    """Returns the adjusted counts of one order (Kneser & Ney 1995).

    Below the highest order, the count of an n-gram is the number of distinct tokens that precede it. Nothing precedes
    an n-gram at the beginning of a document, so it keeps its count.
    """
    level = levels[order - 1]
    if order == len(levels):
        return level.counts
    preceded = np.bincount(levels[order].suffixes, minlength=len(level.words))
    return np.where(level.initial, level.counts, preceded) if order > 1 else preceded


def _divided(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.divide(values, totals, out=np.zeros(len(values)), where=totals > 0)


# --- methods ------------------------------------------------------------------------------------------------------


def _maximum_likelihood(settings: NgramSettings, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    return counts.shares(), np.zeros(len(counts.totals))


def _add_k(settings: NgramSettings, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """(c + k) / (c(h) + k V), which is c / (c(h) + k V) plus an equal share of k V / (c(h) + k V)."""
    added, totals = settings.add * counts.num_words, counts.totals
    return _divided(counts.counts, counts.of_parents(totals + added)), _divided(
        np.full(len(totals), added), totals + added
    )


def _jelinek_mercer(settings: NgramSettings, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    weight = settings.lambdas[counts.order - 1]
    return weight * counts.shares(), np.full(len(counts.totals), 1.0 - weight)


def _absolute_discounts(settings: NgramSettings, order: int, numbers: np.ndarray) -> np.ndarray:
    discount = settings.discount
    if not discount:
        once, twice = int(numbers[1]), int(numbers[2])
        if not once:
            raise UserError(
                f"{WHERE}.discount: no {order}-gram occurs exactly once, so n1 / (n1 + 2 n2) is 0; set this "
                "discount, or use a text that is longer or less repetitive."
            )
        discount = once / (once + 2 * twice)
    return np.array([0.0, discount, discount, discount])


def _discounted(settings: NgramSettings, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Subtracts discounts[min(c, 3)] from each count c. A context reserves the total amount subtracted."""
    discounts = counts.discounts
    assert discounts is not None
    subtracted = np.minimum(discounts[np.minimum(counts.counts, 3)], counts.counts)
    totals = counts.totals
    direct = _divided(counts.counts - subtracted, counts.of_parents(totals))
    # Counting is exact, but a sum of floats over all contexts is not.
    reserved = sum(
        (discounts[n] * counts.level.sums(np.minimum(counts.counts, 3) == n) for n in (1, 2, 3)), np.zeros(len(totals))
    )
    return direct, _divided(reserved, totals)


def kneser_ney_discounts(settings: NgramSettings, order: int, numbers: np.ndarray) -> np.ndarray:
    """Returns the discounts of the counts 0, 1, 2 and 3 or more (Chen & Goodman 1998, equation 26), as KenLM does.

    Where the formula divides by 0 or its result is not between 0 and the count, KenLM rejects the data unless
    --discount_fallback is given. The setting `fallback_discounts` plays the role of that flag.
    """
    numbers = numbers.astype(np.float64)
    if missing := [number for number in (1, 2, 3) if not numbers[number]]:
        reason = f"no {order}-gram has the count {missing[0]}"
    else:
        y = numbers[1] / (numbers[1] + 2 * numbers[2])
        found = np.array([n - (n + 1) * y * numbers[n + 1] / numbers[n] if n else 0.0 for n in range(4)])
        if np.all(found >= 0) and np.all(found <= np.arange(4)):
            return found
        wrong = next(n for n in (1, 2, 3) if not 0 <= found[n] <= n)
        reason = f"the discount of {order}-grams with the count {wrong} would be {found[wrong]:.3g}"
    if not settings.fallback_discounts:
        raise UserError(
            f"{WHERE}.smoothing: Kneser-Ney discounts cannot be estimated ({reason}), because the text is too "
            "short, too repetitive or not natural language; set model.ngram.fallback_discounts=(0.5, 1.0, 1.5), or use "
            "another method."
        )
    return np.array([0.0, *settings.fallback_discounts])


def _with_lambdas(settings: NgramSettings, levels: Sequence[Level], num_words: int) -> NgramSettings:
    return settings if settings.lambdas else estimated_lambdas(settings, levels, num_words)


SMOOTHINGS = {
    "maximum_likelihood": Smoothing("relative frequencies; unseen n-grams have the probability 0", _maximum_likelihood),
    "add_k": Smoothing("every count is increased by `add` (Lidstone)", _add_k, ("add",), shares_equally=True),
    "jelinek_mercer": Smoothing(
        "weighted mean of the relative frequencies of all orders (Jelinek & Mercer 1980)",
        _jelinek_mercer,
        ("lambdas",),
        prepare=_with_lambdas,
    ),
    "absolute_discounting": Smoothing(
        "a constant is subtracted from every count (Ney 1994)",
        _discounted,
        ("discount",),
        discounts=_absolute_discounts,
    ),
    "kneser_ney": Smoothing(
        "interpolated modified Kneser-Ney (Chen & Goodman 1998), as in KenLM",
        _discounted,
        ("fallback_discounts",),
        adjusts=True,
        discounts=kneser_ney_discounts,
    ),
    "arpa": Smoothing("probabilities imported from a file (python -m lm.ngram import); cannot be trained", None),
}
