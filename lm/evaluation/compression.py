"""Yardsticks that need no training: a general compressor, and the entropy of single tokens."""

from __future__ import annotations

import lzma
from collections.abc import Mapping

import numpy as np

from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.base import Tokenizer


def xz_bits_per_byte(stores: Mapping[str, TokenStore], tokenizer: Tokenizer) -> float:
    """Bits per UTF-8 byte of all documents of a split, one after another, through `xz -9` with its headers.

    The text is read back from the tokens, so tokenizer and store must be lossless (no unknown tokens).
    """
    compressor, size, packed = lzma.LZMACompressor(preset=9), 0, 0
    for store in stores.values():
        ends = [*store.starts[1:], store.num_tokens]
        for start, end in zip(store.starts, ends, strict=True):
            text = tokenizer.decode(store.tokens[start:end].tolist()).encode("utf-8")
            size += len(text)
            packed += len(compressor.compress(text))
    packed += len(compressor.flush())
    return 8 * packed / size


def unigram_entropy(stores: Mapping[str, TokenStore], tokenizer: Tokenizer) -> float:
    """Entropy of the tokens of all texts of a split, in nats, without those around a document.

    No model that knows nothing of a token's surroundings can have a lower loss on it, not even one that was made
    of this very text.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for store in stores.values():
        counts += np.bincount(np.asarray(store.tokens), minlength=len(counts))
    counts[[tokenizer.bos_id, tokenizer.eos_id]] = 0
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
