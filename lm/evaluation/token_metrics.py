"""Language model metrics, computed from sums over scored tokens, and baselines that need only the text."""

from __future__ import annotations

import dataclasses
import itertools
import lzma
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.base import Tokenizer
from lm.evaluation.metric import Metric, share


def _large(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1e5 or math.isinf(value) else f"{value:.3e}"


TOKEN_METRICS = (
    Metric("mlm_loss", "masked loss (nats/token)", recorded=True),
    Metric("unigram_entropy", "unigram entropy", recorded=True),
    Metric("mlm_accuracy", "masked accuracy", share, higher_is_better=True, drawn=True, recorded=True),
    Metric("next_sentence_accuracy", "next-sentence accuracy", share, higher_is_better=True, drawn=True),
    # Every task has a loss. `Task.loss_name` selects its name in tables: loss, task_loss or nll.
    Metric("loss", "loss (nats/token)", recorded=True),
    Metric("task_loss", "loss"),
    Metric("nll", "nll (nats/token)", recorded=True),
    Metric("perplexity", "perplexity", _large),
    Metric("negative_elbo", "negative ELBO (nats/text)", "{:.3f}".format, recorded=True),
    Metric("kl", "KL (nats/text)", "{:.3f}".format, recorded=True),
    Metric("perplexity_bound", "perplexity bound", _large, recorded=True),
    Metric("bits_per_byte", "bits/byte", recorded=True),
    Metric("xz_bits_per_byte", "xz -9 bits/byte"),
    Metric("token_accuracy", "token accuracy", share, higher_is_better=True),
    Metric("word_perplexity", "word perplexity", _large, recorded=True),
    Metric("tokens", "tokens", "{:,.0f}".format),
    Metric("pairs", "pairs", "{:,.0f}".format),
)


@dataclass(frozen=True)
class Sums:
    """Sums over scored tokens, and the size of the text that these tokens represent."""

    nll: float = 0.0  # in nats
    correct: float = 0.0  # correctly predicted tokens
    weight: float = 0.0  # scored tokens
    # The corresponding sums for next-sentence prediction, which scores text pairs.
    pair_nll: float = 0.0
    pair_correct: float = 0.0
    pairs: float = 0.0
    # For variational autoencoders, the KL divergence in nats, and the number of texts.
    kl: float = 0.0
    texts: float = 0.0
    bytes: float = 0  # the length of the text in UTF-8
    words: float = 0  # as in WikiText: separated by whitespace, and the end of a line counts as a word
    unknown: float = 0  # unknown tokens, which stand for text that the tokenizer cannot encode
    changed: float = 0  # documents that encoding and decoding do not restore exactly

    def __add__(self, other: Sums) -> Sums:
        return Sums(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


def language_metrics(sums: Sums) -> dict[str, float]:
    """Computes loss (nats/token), perplexity, token accuracy (0 to 1), bits per byte, word perplexity and token count.

    Bits per byte and word perplexity do not depend on the tokenizer, so they can be compared across vocabularies. The
    metrics in `missing_metrics` are left out. If there are no tokens, all other metrics are NaN.
    """
    missing, result = missing_metrics(sums), token_metrics(sums)
    tokens = result.pop("tokens")
    if "bits_per_byte" not in missing:
        result["bits_per_byte"] = sums.nll / math.log(2) / sums.bytes
    if "word_perplexity" not in missing:
        result["word_perplexity"] = _exp(sums.nll / sums.words)
    return result | {"tokens": tokens}


def token_metrics(sums: Sums) -> dict[str, float]:
    """Computes loss (nats/token), perplexity, token accuracy (0 to 1) and token count for any kind of targets."""
    loss, accuracy = ratio(sums.nll, sums.weight), ratio(sums.correct, sums.weight)
    return {"loss": loss, "perplexity": _exp(loss), "token_accuracy": accuracy, "tokens": sums.weight}


def missing_metrics(sums: Sums, *, with_xz: bool = False) -> dict[str, str]:
    """Returns the metrics that cannot be computed, each with the reason, for example that the tokenizer loses text.

    If `with_xz` is true, xz_bits_per_byte is included. This metric also needs a lossless tokenizer, because the text to
    be compressed is decoded from the tokens.
    """
    missing = {"bits_per_byte": "the text is empty"} if sums.bytes <= 0 else {}
    missing |= {"word_perplexity": "the text has no words"} if sums.words <= 0 else {}
    lost = ""
    if sums.unknown > 0:
        lost = f"the tokenizer replaced text with {sums.unknown:,.0f} unknown tokens"
    elif sums.changed > 0:
        differ = "1 document differs" if sums.changed == 1 else f"{sums.changed:,.0f} documents differ"
        lost = f"the tokenizer loses text: {differ} after encoding and decoding"
    if lost:
        reason = f"{lost}, so the loss does not cover every byte of the text"
        missing = dict.fromkeys(("bits_per_byte", "word_perplexity"), reason)
    if with_xz and "bits_per_byte" in missing:
        missing["xz_bits_per_byte"] = missing["bits_per_byte"]
    return missing


def masked_metrics(sums: Sums) -> dict[str, float]:
    """Computes the metrics of masked language modelling and, if there are text pairs, of next-sentence prediction."""
    masked, accuracy = ratio(sums.nll, sums.weight), ratio(sums.correct, sums.weight)
    result = {"loss": masked, "mlm_loss": masked, "mlm_accuracy": accuracy, "perplexity": _exp(masked)}
    if sums.pairs:
        result["loss"] += sums.pair_nll / sums.pairs
        result["next_sentence_accuracy"] = sums.pair_correct / sums.pairs
    return result | {"tokens": sums.weight}


def pair_metrics(sums: Sums) -> dict[str, float]:
    """Computes the loss of word vectors, the pair accuracy (0 to 1; 0.5 is chance) and the number of pairs."""
    accuracy = ratio(sums.correct, sums.weight)
    return {"loss": ratio(sums.nll, sums.weight), "pair_accuracy": accuracy, "pairs": sums.weight}


def contrastive_metrics(sums: Sums) -> dict[str, float]:
    """Computes the contrastive loss and the retrieval accuracy, averaged over both directions.

    The accuracy is the share of texts whose nearest neighbour in the batch is the other text of the same pair.
    """
    return {"loss": ratio(sums.nll, sums.weight), "accuracy": ratio(sums.correct, sums.weight)}


def autoencoding_metrics(sums: Sums) -> dict[str, float]:
    """Computes the metrics of a variational autoencoder. The loss is the cross-entropy of the restored texts.

    The perplexity bound is exp(negative ELBO per token), an upper bound on the perplexity (Bowman 2016).
    """
    found, negative_elbo = token_metrics(sums), sums.nll + sums.kl
    return {
        "loss": found["loss"],
        "token_accuracy": found["token_accuracy"],
        "kl": ratio(sums.kl, sums.texts),
        "negative_elbo": ratio(negative_elbo, sums.texts),
        "perplexity_bound": _exp(ratio(negative_elbo, sums.weight)),
        "tokens": sums.weight,
    }


def xz_bits_per_byte(stores: Mapping[str, TokenStore], tokenizer: Tokenizer) -> float:
    """Computes the bits per UTF-8 byte that `xz -9` needs for all documents of a split, including the xz headers."""
    compressor, size, packed = lzma.LZMACompressor(preset=9), 0, 0
    for store in stores.values():
        for start, end in itertools.pairwise([*store.starts, store.num_tokens]):
            text = tokenizer.decode(store.tokens[start:end].tolist()).encode("utf-8")
            size += len(text)
            packed += len(compressor.compress(text))
    packed += len(compressor.flush())
    return 8 * packed / size


def unigram_entropy(stores: Mapping[str, TokenStore], tokenizer: Tokenizer) -> float:
    """Computes the unigram entropy of a split's tokens, in nats per token, excluding BOS and EOS.

    No model that ignores context can have a lower loss on the split, even if it was trained on the split.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for store in stores.values():
        counts += np.bincount(np.asarray(store.tokens), minlength=len(counts))
    counts[[tokenizer.start_id, tokenizer.eos_id]] = 0
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def ratio(total: float, count: float) -> float:
    return total / count if count > 0 else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
