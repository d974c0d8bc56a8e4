"""Settings of n-gram models."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config.schema import option

LONGEST = 7  # the highest order


@dataclass(frozen=True)
class NgramSettings:
    """Settings of an n-gram model. Except for `order` and `sizes`, they affect only the values of its tables."""

    order: int = option(5, minimum=1, maximum=LONGEST, affects="shapes")
    """Order n of the model: each token is predicted from the n - 1 tokens before it."""
    smoothing: str = option("kneser_ney", registry="lm.models.ngram.smoothing.SMOOTHINGS", affects="shapes")
    """Estimate of the probabilities. Contexts that do not occur in the training data are shortened."""
    add: float = option(1.0, minimum=0.0, read_by="smoothing")
    """The number k that is added to every count, for smoothing='add_k'."""
    lambdas: tuple[float, ...] = option((), read_by="smoothing")
    """Weights of the relative frequencies of orders 1 to n in their interpolation with the next lower order, each from
    0 to 1, for smoothing='jelinek_mercer'. If empty, EM estimates the weights by leaving each n-gram of the training
    data out in turn (deleted interpolation)."""
    discount: float = option(0.0, minimum=0.0, maximum=1.0, read_by="smoothing")
    """Number subtracted from every count, for smoothing='absolute_discounting'. If 0, n1 / (n1 + 2 n2) is used in each
    order, where n1 and n2 are the numbers of n-grams that occur once and twice (Ney 1994)."""
    fallback_discounts: tuple[float, ...] = option((), read_by="smoothing")
    """Discounts of the counts 1, 2 and 3 or more for smoothing='kneser_ney', used in those orders in which the formula
    of Chen & Goodman yields none (0.5, 1 and 1.5 in KenLM's --discount_fallback). If empty, such data is refused."""
    sizes: tuple[int, ...] = option((), affects="shapes")
    """Number of n-grams of each order from 2 to n. Counted in the training data; leave this empty."""
