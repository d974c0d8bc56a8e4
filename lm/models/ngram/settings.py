"""The n-gram architecture: checks its settings, and fits the model by counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config.ngram import NgramSettings
from lm.errors import UserError
from lm.models.architecture import Architecture, FitReport, Fitted, Refuse
from lm.models.ngram.counting import count_ngrams
from lm.models.ngram.model import NgramModel
from lm.models.ngram.smoothing import SMOOTHINGS
from lm.models.ngram.table import fitted


def largest_stride(config: Any) -> int:
    """Returns the largest stride of evaluation windows that gives every token its full context of n - 1 tokens."""
    return max(1, config.data.sequence_length - (config.model.ngram.order - 1))


def derive(config: Any) -> dict[str, Any]:
    return {"eval.stride": largest_stride(config)}


def check(config: Any, refuse: Refuse) -> None:
    ngram, sources = config.model.ngram, config.data.train
    if (length := config.data.sequence_length) < ngram.order:
        refuse("data.sequence_length", f"{length} is less than model.ngram.order={ngram.order}; raise this number.")
    if (stride := config.eval.stride) > (largest := largest_stride(config)):
        problem = f"windows that begin every {stride} tokens truncate the contexts of model.ngram.order={ngram.order}"
        refuse("eval.stride", f"{problem}; set this to 0, which means {largest}.")
    weights = {each.weight for each in sources.values() if each.weight > 0}
    if len(weights) > 1:
        refuse("data.train", "every document is counted once; give each data source weight 1, or weight 0 to omit it.")
    if ngram.lambdas and (len(ngram.lambdas) != ngram.order or not all(0 <= each <= 1 for each in ngram.lambdas)):
        refuse("model.ngram.lambdas", f"give {ngram.order} weights from 0 to 1, one per order, or leave this empty.")
    fallback = ngram.fallback_discounts
    if fallback and (len(fallback) != 3 or not all(0 <= each <= n for n, each in enumerate(fallback, start=1))):
        problem = "give three discounts, for the counts 1, 2 and 3, each from 0 to that count"
        refuse("model.ngram.fallback_discounts", f"{problem}, or leave this empty.")
    if ngram.sizes and len(ngram.sizes) != ngram.order - 1:
        refuse("model.ngram.sizes", "these numbers are counted in the training data; leave this setting empty.")


def check_fit(config: Any, refuse: Refuse) -> None:
    if SMOOTHINGS[config.model.ngram.smoothing].method is None:
        refuse("model.ngram.smoothing", "such a model cannot be trained, only imported (python -m lm.ngram import).")


def fit(
    config: Any, stores: Mapping[str, Any], tokenizer: Any, directory: Path, report: FitReport | None = None
) -> Fitted:
    """Counts the n-grams of the training data and estimates their probabilities. See `lm.models.architecture.Fit`."""
    ngram, vocab_size = config.model.ngram, config.model.vocab_size
    levels = count_ngrams(list(stores.values()), ngram.order, vocab_size, tokenizer.start_id, directory, report)
    sizes = [len(level.words) for level in levels[1:]]
    if 0 in sizes:
        longest = sizes.index(0) + 1
        raise UserError(
            f"config.model.ngram.order: no document has {longest + 1} tokens, including its start and end "
            f"tokens, so {longest} is the highest possible order."
        )
    possible = possible_tokens(tokenizer, vocab_size, levels[0].counts)
    smoothing = SMOOTHINGS[ngram.smoothing]
    ngram = smoothing.prepare(ngram, levels, int(possible.sum()))
    params, discounts = fitted(levels, ngram, possible)
    notes = [f"counted {', '.join(f'{size:,} {k}-grams' for k, size in enumerate(sizes, start=2))}"] if sizes else []
    record: dict[str, Any] = {}
    if "lambdas" in smoothing.reads:
        record["lambdas"] = list(ngram.lambdas)
        notes.append(f"weights (lambdas) of the orders, from 1 up: {_numbers(ngram.lambdas)}")
    if discounts:
        record["discounts"] = discounts
        listed = (f"{_numbers(each)} ({k}-grams)" for k, each in enumerate(discounts, start=1))
        notes.append(f"discounts of the counts 1, 2 and 3 or more: {'; '.join(listed)}")
    return Fitted({"model.ngram.sizes": tuple(sizes)}, params, tuple(notes), record)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{each:.4f}" for each in values)


def possible_tokens(tokenizer: Any, vocab_size: int, counts: np.ndarray) -> np.ndarray:
    """Returns which tokens can be predicted, bool (V,).

    These are all tokens that spell text, the unknown token, the token that ends documents, and all tokens that
    occur in the data.
    """
    possible = counts > 0
    possible[tokenizer.text_ids] = True
    possible[[each for each in (tokenizer.unk_id, tokenizer.eos_id) if each is not None]] = True
    return possible


NGRAM = Architecture(
    "n-gram model, counted and smoothed (Chen & Goodman 1998)",
    {"decoder": NgramModel.build},
    frozenset(f"model.ngram.{each.name}" for each in dataclasses.fields(NgramSettings)),
    derive,
    check,
    tensor_sizes=(),  # the tables are not split
    fit=fit,
    check_fit=check_fit,
)
