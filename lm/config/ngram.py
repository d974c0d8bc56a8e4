"""Settings of n-gram models."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option

LONGEST = 7  # the highest order


@dataclass(frozen=True)
class NgramSettings:
    """Settings of an n-gram model. All except `order`, `smoothing` and `sizes` affect only the values in its tables."""

    order: int = option(5, minimum=1, maximum=LONGEST, affects="shapes")
    """Order n of the model: each token is predicted from the n - 1 tokens before it."""
    smoothing: str = option("kneser_ney", registry="lm.models.ngram.smoothing.SMOOTHINGS", affects="shapes")
    """Method of estimating the probabilities. Contexts that do not occur in the training data are shortened."""
    add: float = option(1.0, minimum=0.0, read_by="smoothing")
    """The number k that is added to every count, for smoothing='add_k'."""
    lambdas: tuple[float, ...] = option((), read_by="smoothing")
    """Interpolation weights for orders 1 to n, each from 0 to 1, for smoothing='jelinek_mercer'. The weight of an order
    applies to its relative frequencies, and the next lower order gets the remaining weight. If empty, EM estimates
    the weights by leaving out each n-gram of the training data in turn (deleted interpolation)."""
    discount: float = option(0.0, minimum=0.0, maximum=1.0, read_by="smoothing")
    """Number subtracted from every count, for smoothing='absolute_discounting'. If 0, n1 / (n1 + 2 n2) is used for each
    order, where n1 and n2 are the numbers of n-grams that occur once and twice (Ney 1994)."""
    fallback_discounts: tuple[float, ...] = option((), read_by="smoothing")
    """Discounts of the counts 1, 2 and 3 or more, for smoothing='kneser_ney' (0.5, 1 and 1.5 in KenLM's
    --discount_fallback). They are used for orders in which the formula of Chen & Goodman yields no valid discounts. If
    empty, such orders raise an error."""
    sizes: tuple[int, ...] = option((), affects="shapes")
    """Number of n-grams of each order from 2 to n. They are counted in the training data, so leave this empty."""
