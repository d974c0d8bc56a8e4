"""Tokenizers from Hugging Face's `tokenizers` library, each stored in a single file."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import TokenizerConfig
from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.data.tokenizing.special_token_files import USUAL_MASK, USUAL_PAD, Files, files_beside, special_tokens
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError
from lm.files import parse_json

MOST_UNUSED_IDS = 100_000  # limit on unused ids below the largest id; every id takes up rows in the embedding and head


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer loaded from a `tokenizer.json` file and the files beside it, which name its special tokens.

    If the file contains the tokens <extra_id_0>, <extra_id_1>, ..., they serve as the extra ids, and no others are
    added.
    """

    kind = "huggingface"
    doc = "the tokenizer.json file given by `path`"
    file_type = file_name = "tokenizer.json"
    file_is_text = True
    learns = False
    needs_file = True
    reads = ("bos_token", "eos_token")

    # Whitespace appears in tokens literally, as SentencePiece's U+2581, or as byte tokens.
    SPACES = (*" \t\n\v\f\r\u2581", *(f"<0x{byte:02X}>" for byte in b"\t\n\v\f\r "))
    BYTE_LEVEL_SPACES = tuple("\u0109\u010a\u010b\u010c\u010d\u0120")  # bytes 9 to 13 and 32

    def __init__(
        self,
        content: bytes,
        bos_token: str = "",
        eos_token: str = "",
        special: Mapping[str, Any] | None = None,
        rows: int | None = None,
    ):
        """Loads a tokenizer.

        Args:
            content: the content of tokenizer.json.
            special: the special tokens as JSON. If omitted, the special tokens are read from tokenizer.json alone.
            bos_token: the BOS token, for run directories written before special tokens were stored. In such
                runs, texts have the form `bos text eos`, where eos is `eos_token`.
            rows: the number of rows in a published model's embedding, if some of the tokenizer's ids have no row.
        """
        self._json = content
        self._tokenizer = _library_tokenizer(content)
        self._tokenizer.encode_special_tokens = True  # treats "<s>" in a document as ordinary text
        if not (special or bos_token):
            special = special_tokens(parse_json(content), {}).to_json()
        self._saved: dict[str, Any] = {"special": special}
        if special is None:
            self._saved = {"bos_token": bos_token, "eos_token": eos_token}
            bos, eos = map(self._tokenizer.token_to_id, (bos_token, eos_token))
            if bos is None or eos is None:
                raise ValueError(f"it has no token {bos_token!r} or {eos_token!r}")
            pad, mask = self._first_of(*USUAL_PAD), self._first_of(*USUAL_MASK)
            self.special_tokens = SpecialTokens(bos, eos, pad=pad, mask=mask)
        else:
            self.special_tokens = SpecialTokens.from_json(special)
        self.pad_id = self.special_tokens.pad or 0
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._rows, self.base_size = rows, min(max(ids.values()) + 1, rows or sys.maxsize)
        if (last := max(set(ids.values()) - self._special_added)) >= self.base_size:
            raise ValueError(f"it has ids up to {last:,} for text, but the embedding has only {rows:,} rows")
        if self.base_size - len(ids) > MOST_UNUSED_IDS:
            raise ValueError(f"it has {len(ids):,} tokens, but ids up to {self.base_size - 1:,}; renumber them from 0")
        extra = itertools.takewhile(ids.__contains__, (f"<extra_id_{number}>" for number in itertools.count()))
        self._extra: Sequence[int] = [ids[token] for token in extra]
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unk_id = self._tokenizer.token_to_id(unknown) if unknown else None

    @classmethod
    def load(cls, path: Path, content: bytes, config: TokenizerConfig) -> Tokenizer:
        """Returns the tokenizer of a published model, with the special tokens named in the files beside `path`."""
        return cls.from_files(content, files_beside(path), config.bos_token, config.eos_token)

    @classmethod
    def from_files(
        cls, content: bytes, files: Files, bos_token: str = "", eos_token: str = "", rows: int | None = None
    ) -> HuggingFaceTokenizer:
        """Returns the tokenizer with the special tokens named in the published `files` (see `special_tokens`)."""
        found = special_tokens(parse_json(content), files, bos_token, eos_token)
        return cls(content, special=found.to_json(), rows=rows)

    def _first_of(self, *tokens: str) -> int | None:
        ids = map(self._tokenizer.token_to_id, tokens)
        return next((token for token in ids if token is not None), None)

    def with_extra_ids(self, number: int) -> Tokenizer:
        return self if self._extra else super().with_extra_ids(number)

    @property
    def extra_tokens(self) -> Sequence[int]:
        return self._extra or super().extra_tokens

    @property
    def mask_id(self) -> int:
        mask = self.special_tokens.mask
        return super().mask_id if mask is None else mask

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with _library_errors("cannot encode a text"):
            return [each.ids for each in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        with _library_errors("cannot encode a text"):
            found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_rendered(self, text: str) -> tuple[list[int], Offsets]:
        with _library_errors("cannot encode a text"):
            found = self._for_rendered.encode(text, add_special_tokens=False)
        if unknown := next((token for token in found.ids if token >= self.vocab_size), None):
            raise UserError(f"the model has no embedding for the token {self._tokenizer.id_to_token(unknown)!r}.")
        return found.ids, found.offsets

    @functools.cached_property
    def _for_rendered(self) -> Any:
        """A second tokenizer, which recognises special tokens.

        Switching the mode of the first tokenizer would affect other threads.
        """
        return _library_tokenizer(self._json)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def decode_each(self, batch: Sequence[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(list(batch), skip_special_tokens=False)

    def _piece(self, token: int) -> str:
        piece = self._tokenizer.id_to_token(token)
        return f"<{token}>" if piece is None else piece.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ")

    def _is_text(self, token: int) -> bool:
        is_used = self._tokenizer.id_to_token(token) is not None
        return is_used and token not in self._special_added and super()._is_text(token)

    @functools.cached_property
    def _special_added(self) -> frozenset[int]:
        """The ids of the tokens that tokenizer.json marks as special."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, each in added.items() if each.special)

    def _starts_word(self, token: int) -> bool:
        model, piece = self._tokenizer.model, self._tokenizer.id_to_token(token) or ""
        kind = type(model).__name__
        if kind == "WordPiece":
            return not piece.startswith(model.continuing_subword_prefix)
        return kind == "WordLevel" or piece.startswith(self.BYTE_LEVEL_SPACES if self._byte_level else self.SPACES)

    @functools.cached_property
    def _byte_level(self) -> bool:
        """Whether tokens are byte sequences in which each byte is written as a printable character."""
        parts = json.loads(self._json)
        return "'ByteLevel'" in str([parts.get("pre_tokenizer"), parts.get("decoder")])

    def _special(self) -> dict[int, str]:
        return self._special_names

    @functools.cached_property
    def _special_names(self) -> dict[int, str]:
        special = self.special_tokens
        found = [special.start, *special.stops, *(each for each in (special.pad, special.mask) if each is not None)]
        if "special" in self._saved:
            found += self._special_added
        return {token: self._tokenizer.id_to_token(token) or f"<{token}>" for token in found}

    def library_parts(self, names: Mapping[int, str]) -> dict[str, Any]:
        parts = parse_json(self._json)
        processor = parts.pop("post_processor", None) or {}
        steps = processor["processors"] if processor.get("type") == "Sequence" else [processor]
        kept = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")
        return {name: parts.get(name) for name in kept} | {
            "added_tokens": parts.get("added_tokens") or [],
            "post_processors": [step for step in steps if step.get("type") == "ByteLevel"],
        }

    def _options(self) -> dict[str, Any]:
        return self._saved | ({"rows": self._rows} if self._rows else {}) | super()._options()

    def _content(self) -> bytes:
        return self._json


def _library_tokenizer(content: bytes) -> Any:
    """Returns the library's tokenizer with truncation and padding disabled. The tokenizer recognises special tokens."""
    import tokenizers

    with _library_errors("cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    return tokenizer


@contextlib.contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Converts the library's errors, such as a missing unknown token, to UserError."""
    try:
        yield
    except BaseException as error:  # a Rust panic is not an Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"tokenizer.json {problem} ({reason}); correct the file, or use another one.") from error
        raise
