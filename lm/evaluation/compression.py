"""A yardstick that needs no training: how well a general compressor packs the same text."""

from __future__ import annotations

import lzma
from collections.abc import Mapping

from lm.data.token_store import TokenStore
from lm.data.tokenizers import Tokenizer


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
