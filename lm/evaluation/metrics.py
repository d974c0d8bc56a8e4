"""From sums over scored tokens to the figures that are reported."""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any

OF_PLAIN_TEXT = ("bits_per_byte", "word_perplexity")


@dataclass(frozen=True)
class Sums:
    """What was added up over scored tokens, and the size of the text that they spell.

    `nll` is in nats; `correct` and `weight` count tokens. `bytes` is the UTF-8 length of the text,
    `words` its words by the WikiText convention (what white space separates, and an end-of-line mark
    per line), `unknown` the tokens that stand for text the tokenizer could not spell. `pair_nll` and
    `pair_correct` are of `pairs` of texts, of which it is told whether the second follows the first.
    """

    nll: float = 0.0
    correct: float = 0.0
    weight: float = 0.0
    bytes: float = 0
    words: float = 0
    unknown: float = 0
    pair_nll: float = 0.0
    pair_correct: float = 0.0
    pairs: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


def language_metrics(sums: Sums) -> dict[str, float]:
    """Loss (nats/token), perplexity, token accuracy (0 to 1), bits per byte, word perplexity, tokens.

    Bits per byte = nll / ln 2 / bytes and word perplexity = exp(nll / words) do not depend on the
    tokenizer, so they compare models with different vocabularies; both are left out where
    `missing_figures` says why. Without any token the figures are NaN.
    """
    loss = _ratio(sums.nll, sums.weight)
    result = {
        "loss": loss,
        "perplexity": _exp(loss),
        "token_accuracy": _ratio(sums.correct, sums.weight),
    }
    missing = missing_figures(sums)
    if "bits_per_byte" not in missing:
        result["bits_per_byte"] = sums.nll / math.log(2) / sums.bytes
    if "word_perplexity" not in missing:
        result["word_perplexity"] = _exp(sums.nll / sums.words)
    result["tokens"] = sums.weight
    return result


def masked_metrics(sums: Sums) -> dict[str, float]:
    """Of hidden tokens, mlm_loss (nats) and mlm_accuracy; of pairs, their accuracy; loss is what is minimised."""
    masked = _ratio(sums.nll, sums.weight)
    result = {"loss": masked, "mlm_loss": masked, "mlm_accuracy": _ratio(sums.correct, sums.weight)}
    result["perplexity"] = _exp(masked)
    if sums.pairs:
        result["loss"] += sums.pair_nll / sums.pairs
        result["next_sentence_accuracy"] = sums.pair_correct / sums.pairs
    result["tokens"] = sums.weight
    return result


def contrastive_metrics(sums: Sums) -> dict[str, float]:
    """Loss, and how often a text's own partner is the nearest in the batch (both ways)."""
    return {"loss": _ratio(sums.nll, sums.weight), "accuracy": _ratio(sums.correct, sums.weight)}


def missing_figures(sums: Sums) -> dict[str, str]:
    """Figures that this text and tokenizer do not allow, each with the reason."""
    if sums.unknown > 0:
        reason = (
            f"the tokenizer replaced text by {sums.unknown:,.0f} unknown tokens, "
            "so the model does not account for every byte"
        )
        return {"bits_per_byte": reason, "word_perplexity": reason}
    missing = {}
    if sums.bytes <= 0:
        missing["bits_per_byte"] = "the text is empty"
    if sums.words <= 0:
        missing["word_perplexity"] = "the text has no words"
    return missing


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity and no NaN: they are written as null."""
    return value if math.isfinite(value) else None


def _ratio(total: float, count: float) -> float:
    return total / count if count > 0 else math.nan


def _exp(value: float) -> float:
    """exp, with infinity in place of an overflow."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def loss_of(sums: Any) -> Sums:
    """Returns the part of Sums that a model's loss (`LossSums` of floats) gives."""
    names = ("nll", "correct", "weight", "pair_nll", "pair_correct", "pairs")
    return Sums(**{name: float(getattr(sums, name)) for name in names})


def token_metrics(sums: Sums) -> dict[str, float]:
    """Returns what `language_metrics` does, without the metrics that make sense for plain text only."""
    return {name: value for name, value in language_metrics(sums).items() if name not in OF_PLAIN_TEXT}
