"""Code shared by the builders of older tokenizers: files, options and special tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from lm.errors import UserError
from lm.huggingface.sentencepiece_files import PieceFile


@dataclass(frozen=True)
class Older:
    """The files of one tokenizer.

    Attributes:
        content: a function that returns the content of an existing file.
        options: the merged contents of tokenizer_config.json and special_tokens_map.json.
        usual: maps names such as "eos_token" to the default special tokens of the class.
        where: the folder, for error messages.
    """

    content: Callable[[str], bytes]
    options: Mapping[str, Any]
    usual: Mapping[str, str]
    where: str

    @property
    def names(self) -> dict[str, str]:
        """The special tokens by name, such as "eos_token"."""
        return {name: self._text(self.options.get(name)) or token for name, token in self.usual.items()}

    def token(self, name: str) -> str:
        """Returns the special token given by the option {name}_token."""
        return self.names[f"{name}_token"]

    @staticmethod
    def _text(value: Any) -> str:
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else ""

    def stated(self, name: str) -> bool | None:
        """Returns a Boolean option, or None if it is null or absent. Raises UserError if it has another type."""
        value = self.options.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{self.where}/tokenizer_config.json: {name}={value!r} is neither true nor false.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Returns a Boolean option, or the default if it is null or absent. Raises UserError if it has another type."""
        value = self.stated(name)
        return default if value is None else value

    def pieces(self, name: str, algorithm: str) -> PieceFile:
        """Reads a SentencePiece model. Raises UserError if the model does not use `algorithm`."""
        found = PieceFile.parse(self.content(name))
        if found.algorithm != algorithm:
            raise UserError(f"{self.where}/{name} holds a {found.algorithm} model, but this family uses {algorithm}.")
        return found


def add_special(tokenizer: Tokenizer, contents: Iterable[str], mask: str = "") -> None:
    """Marks tokens of the vocabulary as special. Raises ValueError if the vocabulary lacks a token."""
    for content in dict.fromkeys(contents):
        with_id(tokenizer, content)
        tokenizer.add_special_tokens([AddedToken(content, lstrip=content == mask, normalized=False, special=True)])


def add_listed(tokenizer: Tokenizer, listed: Mapping[str, Any]) -> None:
    """Adds the tokens in `added_tokens_decoder`. Raises ValueError if a token cannot have its listed id."""
    for number, values in sorted((int(number), values) for number, values in listed.items()):
        flags = {name: bool(values.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        token = AddedToken(values["content"], **flags, special=bool(values.get("special")))
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(f"the token {token.content!r} of tokenizer_config.json cannot have the id {number}")


def with_id(tokenizer: Tokenizer, token: str) -> tuple[str, int]:
    """Returns a token and its id. Raises ValueError if the vocabulary lacks the token."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the vocabulary lacks the special token {token!r}")
    return token, number


def frame(tokenizer: Tokenizer, one: list[str], two: list[str]) -> None:
    """Sets the templates for one text and for two. "$A" and "$B" stand for the texts, and ":1" for token type 1."""
    special = {part.partition(":")[0] for part in (*one, *two) if not part.startswith("$")}
    ids = [with_id(tokenizer, token) for token in sorted(special)]
    tokenizer.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=ids)
