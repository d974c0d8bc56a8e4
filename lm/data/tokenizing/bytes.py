"""A UTF-8 byte tokenizer. Its vocabulary consists of three special tokens and the 256 byte values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing import library
from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.data.tokenizing.flat import Flat, framed


class ByteTokenizer(Tokenizer):
    kind = "bytes"
    doc = "UTF-8 bytes"
    learns = False
    file_name = "bytes.txt"
    base_size = 3 + 256
    cuts_anywhere = True

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> ByteTokenizer:
        return cls()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [(np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + 3).tolist() for text in texts]

    def encode_documents(self, texts: Sequence[str]) -> Flat:
        encoded = [text.encode("utf-8") for text in texts]
        ids_N = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32) + 3
        return framed(ids_N, np.array(list(map(len, encoded)), np.int64), self.start_id, self.eos_id)

    def changed(self, texts: Sequence[str], ids_N: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
        return np.zeros(len(texts), bool)

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [(i, i + 1) for i, character in enumerate(text) for _ in character.encode("utf-8")]

    def _decode(self, ids: list[int]) -> str:
        return (np.array(ids, np.int32) - 3).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def _piece(self, token: int) -> str:
        value = token - 3
        return chr(value) if 32 <= value < 127 or value in (9, 10) else f"<0x{value:02X}>"

    def _starts_word(self, token: int) -> bool:
        return bytes([token - 3]).isspace()

    def library_parts(self, names: Mapping[int, str]) -> dict[str, Any]:
        bytes_ = {character: byte + 3 for byte, character in enumerate(library.byte_characters())}
        vocabulary = {name: token for token, name in names.items() if token < self.base_size} | bytes_
        form = library.byte_level(use_regex=False)
        return {"model": library.bpe(vocabulary), "pre_tokenizer": form, "decoder": form}

    def _content(self) -> bytes:
        return b"id = byte + 3; 0, 1 and 2 are padding, bos and eos\n"

    @classmethod
    def _from_content(cls, content: bytes, options: dict[str, Any]) -> ByteTokenizer:
        return cls()
