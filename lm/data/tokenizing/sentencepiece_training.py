"""Trains a SentencePiece model that loses nothing, in bounded memory, on an even sample of the text."""

from __future__ import annotations

import hashlib
import heapq
import io
import re
from collections.abc import Iterable, Iterator

from lm.config import TokenizerConfig
from lm.errors import UserError

LONGEST_PIECE_OF_TEXT = 2000  # characters handed to SentencePiece at a time; it skips what is over its bound
LONGEST_IN_BYTES = 4 * LONGEST_PIECE_OF_TEXT
THREADS = 4  # fixed, since the sums of its expectation step depend on it


def train(config: TokenizerConfig, texts: Iterable[str]) -> bytes:
    """A serialised model. Raises UserError if the vocabulary does not suit the text."""
    import sentencepiece

    sample = even_sample(split_texts(texts), int(config.train_megabytes * 1e6))
    if not sample:
        raise UserError("config.data.tokenizer: there is no training text to train a vocabulary on.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocab_size,
            # What goes in comes out again, to the byte:
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n"],
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=LONGEST_IN_BYTES,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explain(config, str(error))) from error
    return model.getvalue()


def _explain(config: TokenizerConfig, message: str) -> str:
    """SentencePiece's errors, with the setting to change and the number it allows."""
    where = f"config.data.tokenizer.vocab_size: {config.vocab_size}"
    if found := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return f"{where} is more than this training text can fill; set it to {found[1]} or less, or add text."
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"{where} cannot hold the characters of this training text; set it to more than {found[1]}."
    return f"{where}: SentencePiece could not be trained on this text ({message.splitlines()[0]})."


def split_texts(texts: Iterable[str]) -> Iterator[str]:
    """Lines of bounded length, cut before a space where there is one. No piece spans any of these cuts."""
    for text in texts:
        for line in text.split("\n"):
            while len(line) > LONGEST_PIECE_OF_TEXT:
                cut = line.rfind(" ", 1, LONGEST_PIECE_OF_TEXT)
                cut = cut if cut > 0 else LONGEST_PIECE_OF_TEXT
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


def even_sample(pieces: Iterable[str], max_bytes: int) -> list[str]:
    """As many pieces as fit into `max_bytes` of UTF-8, drawn evenly over all of them, in their order.

    Each has a pseudo-random key that depends on its number alone; those with the smallest keys stay.
    So one pass is enough, memory is bounded, and the same pieces give the same sample.
    """
    kept: list[tuple[int, int, str, int]] = []  # a heap with the largest key first: (-key, number, piece, bytes)
    total = 0
    for number, piece in enumerate(pieces):
        size = len(piece.encode("utf-8"))
        key = int.from_bytes(hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest(), "little")
        if total + size > max_bytes and kept and -key <= kept[0][0]:
            continue  # full, and this one would be the first to go
        heapq.heappush(kept, (-key, number, piece, size))
        total += size
        while total > max_bytes and len(kept) > 1:
            total -= heapq.heappop(kept)[3]
    return [piece for _, _, piece, _ in sorted(kept, key=lambda each: each[1])]
