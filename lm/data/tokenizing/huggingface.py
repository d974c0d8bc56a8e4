"""Tokenizers of Hugging Face's `tokenizers` library, each stored in a single file."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.errors import UserError

MOST_UNUSED_IDS = 100_000  # below the largest one; each id has rows in the embedding and the head


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer loaded from a `tokenizer.json` file.

    Unless options name the BOS and EOS tokens, they are inferred from the vocabulary. If the file contains the tokens
    <extra_id_0>, <extra_id_1>, ..., they serve as the extra ids, and no others are added.
    """

    kind = "huggingface"
    doc = "the tokenizer.json file given by `path`"
    file_type = file_name = "tokenizer.json"
    file_is_text = True
    learns = False
    needs_file = True
    option_names = reads = ("bos_token", "eos_token")
    GUESSES = (
        ("<|begin_of_text|>", "<|end_of_text|>"),
        ("<s>", "</s>"),
        ("<bos>", "<eos>"),
        ("[CLS]", "[SEP]"),
        ("<|endoftext|>", "<|endoftext|>"),
    )

    # Tokens write white space literally, as SentencePiece's U+2581, or as byte tokens.
    SPACES = (*" \t\n\v\f\r\u2581", *(f"<0x{byte:02X}>" for byte in b"\t\n\v\f\r "))
    BYTE_LEVEL_SPACES = tuple("\u0109\u010a\u010b\u010c\u010d\u0120")  # bytes 9 to 13 and 32

    def __init__(self, content: bytes, bos_token: str = "", eos_token: str = ""):
        import tokenizers

        self._json = content
        with _library_errors("cannot be read"):
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # treats "<s>" in a document as ordinary text
        for bos, eos in self.GUESSES:
            if self._tokenizer.token_to_id(bos) is not None and self._tokenizer.token_to_id(eos) is not None:
                bos_token, eos_token = bos_token or bos, eos_token or eos
                break
        self.bos_token, self.eos_token = bos_token, eos_token
        self.bos_id = self._id_of(bos_token, "bos_token")
        self.eos_id = self._id_of(eos_token, "eos_token")
        pad_id = self._first_of("<pad>", "[PAD]", "<|padding|>", "<|pad|>")
        self._has_pad, self.pad_id = pad_id is not None, pad_id or 0
        self._mask_id = self._first_of("[MASK]", "<mask>")
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.base_size = max(ids.values()) + 1
        if self.base_size - len(ids) > MOST_UNUSED_IDS:
            raise ValueError(f"it has {len(ids):,} tokens, but ids up to {self.base_size - 1:,}; number them from 0")
        extra = itertools.takewhile(ids.__contains__, (f"<extra_id_{number}>" for number in itertools.count()))
        self._extra: Sequence[int] = [ids[token] for token in extra]
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self.unk_id = self._tokenizer.token_to_id(unknown) if unknown else None

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
        return super().mask_id if self._mask_id is None else self._mask_id

    def _id_of(self, piece: str, setting: str) -> int:
        token = self._tokenizer.token_to_id(piece) if piece else None
        if token is None:
            problem = f"it has no token {piece!r}" if piece else "the BOS and EOS tokens could not be inferred"
            raise ValueError(f"{problem}; set data.tokenizer.{setting}")
        return token

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with _library_errors("cannot encode a text"):
            return [each.ids for each in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        with _library_errors("cannot encode a text"):
            found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {each.content: token for token, each in added.items() if each.special}

    @property
    def template_tokens(self) -> dict[str, str]:
        return {"bos_token": self.bos_token, "eos_token": self.eos_token}

    def encode_rendered(self, text: str) -> tuple[list[int], Offsets]:
        self._tokenizer.encode_special_tokens = False
        try:
            return self.encode_with_offsets(text)
        finally:
            self._tokenizer.encode_special_tokens = True

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def decode_each(self, batch: Sequence[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(list(batch), skip_special_tokens=False)

    def _piece(self, token: int) -> str:
        piece = self._tokenizer.id_to_token(token)
        return f"<{token}>" if piece is None else piece.replace("Ġ", " ").replace("Ċ", "\n").replace("▁", " ")

    def _is_text(self, token: int) -> bool:
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        used = self._tokenizer.id_to_token(token) is not None and not (added and added.special)
        return used and super()._is_text(token)

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
        names = {self.bos_id: self.bos_token, self.eos_id: self.eos_token}
        names |= {self.pad_id: "<pad>"} if self._has_pad else {}
        return names | ({self._mask_id: "<mask>"} if self._mask_id is not None else {})

    def _content(self) -> bytes:
        return self._json


@contextlib.contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Converts an error of the library, such as that of an unknown token missing from the vocabulary, to UserError."""
    try:
        yield
    except BaseException as error:  # a panic of Rust is no Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"tokenizer.json {problem} ({reason}); correct the file, or use another one.") from error
        raise
