"""Tokenizers for Marian's translation models: one SentencePiece model per side, and one vocabulary for both sides."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import TokenizerConfig
from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.data.tokenizing.piece_files import SPACE
from lm.data.tokenizing.sentencepiece import SentencePieceTokenizer
from lm.data.tokenizing.special_token_files import Files, files_beside, generation_ids
from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from lm.files import parse_json, read_file

VOCABULARY, SIDES = "vocab.json", {"source": "source.spm", "target": "target.spm"}
_CODE = re.compile(r">>.*?<<")  # names the target language at the start of a source, in multilingual models


class MarianTokenizer(Tokenizer):
    """A tokenizer that splits text with the SentencePiece model for its side and looks up the pieces in vocab.json.

    `for_sources` is the tokenizer for sources. In models with several target languages, a source starts with a language
    code, such as ">>fra<<", which becomes the token with this name, as in the published tokenizer.
    """

    kind = "marian"
    doc = "the vocab.json file given by `path`, with source.spm and target.spm beside it"
    file_type = VOCABULARY
    published_class = "MarianTokenizer"
    file_name = "marian.json"
    file_is_text = True
    learns = False
    needs_file = True

    def __init__(self, content: bytes, special: Mapping[str, Any], side: str = "target"):
        self._json, self._side = content, side
        self.special_tokens = SpecialTokens.from_json(special)
        parts = parse_json(content)
        self._ids: dict[str, int] = parts["vocabulary"]
        self._pieces = {token: piece for piece, token in self._ids.items()}
        self._sides = {name: SentencePieceTokenizer(base64.b64decode(parts[name])) for name in SIDES}
        self.base_size = max(self._pieces) + 1
        self.unk_id, self.pad_id = self._ids["<unk>"], self._ids["<pad>"]

    @classmethod
    def load(cls, path: Path, content: bytes, config: TokenizerConfig) -> Tokenizer:
        models = {side: read_file(path.with_name(name)) for side, name in SIDES.items()}
        return cls.from_files(content, models, files_beside(path))

    @classmethod
    def from_files(cls, vocabulary: bytes, models: Mapping[str, bytes], files: Files) -> MarianTokenizer:
        """Returns the tokenizer of a published model, given vocab.json and the SentencePiece model of each side."""
        ids = parse_json(vocabulary)
        encoded = {side: base64.b64encode(model).decode() for side, model in models.items()}
        eos, pad, starts = ids["</s>"], ids["<pad>"], generation_ids(files, "decoder_start_token_id")
        special = SpecialTokens(
            None, eos, pad=pad, first_of_target=next(iter(starts), pad), one=Template.of_one(TEXT, eos)
        )
        return cls(json.dumps({"vocabulary": ids, **encoded}).encode(), special.to_json())

    @property
    def for_sources(self) -> Tokenizer:
        other = copy.copy(self)
        other._side = "source"
        return other

    def _split(self, text: str) -> tuple[str, str]:
        """Splits off the language code at the start of a source. The code is "" if there is none."""
        match = _CODE.match(text) if self._side == "source" else None
        code = match[0] if match and match[0] in self._ids else ""
        return code, text[len(code) :]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        parts = [self._split(text) for text in texts]
        split = self._sides[self._side].pieces_of([rest for _, rest in parts])
        unknown = self._ids["<unk>"]
        return [
            [self._ids.get(piece, unknown) for piece in ([code, *pieces] if code else pieces)]
            for (code, _), pieces in zip(parts, split, strict=True)
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        code, rest = self._split(text)
        _, offsets = self._sides[self._side].encode_with_offsets(rest)
        spans = [(begin + len(code), end + len(code)) for begin, end in offsets]
        return self.encode(text), [*([(0, len(code))] if code else []), *spans]

    def _decode(self, ids: list[int]) -> str:
        pieces = [self._pieces.get(token, "<unk>") for token in ids]
        return "".join(pieces).replace(SPACE, " ").strip()

    def _piece(self, token: int) -> str:
        return self._pieces.get(token, f"<{token}>").replace(SPACE, " ")

    def _special(self) -> dict[int, str]:
        codes = {token: piece for token, piece in self._pieces.items() if _CODE.fullmatch(piece)}
        return codes | {self._ids[piece]: piece for piece in ("</s>", "<pad>", "<unk>")}

    def own_files(self) -> dict[str, bytes]:
        parts = parse_json(self._json)
        models = {name: base64.b64decode(parts[side]) for side, name in SIDES.items()}
        return {VOCABULARY: json.dumps(self._ids, ensure_ascii=False).encode(), **models}

    def _content(self) -> bytes:
        return self._json

    def _options(self) -> dict[str, Any]:
        side = {"side": self._side} if self._side != "target" else {}
        return {"special": self.special_tokens.to_json(), **side, **super()._options()}
