"""What the rules for older tokenizers share: the files, the options and the special tokens."""

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
        content: returns the content of a file that exists.
        options: tokenizer_config.json, to which special_tokens_map.json is added.
        usual: the special tokens that the class has by default, by names such as "eos_token".
        where: the folder, for messages.
    """

    content: Callable[[str], bytes]
    options: Mapping[str, Any]
    usual: Mapping[str, str]
    where: str

    @property
    def names(self) -> dict[str, str]:
        """The special tokens by their names."""
        return {name: self._text(self.options.get(name)) or token for name, token in self.usual.items()}

    def token(self, name: str) -> str:
        """Returns the special token that the option `name`_token names."""
        return self.names[f"{name}_token"]

    @staticmethod
    def _text(value: Any) -> str:
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else ""

    def stated(self, name: str) -> bool | None:
        """Returns an option that is true or false, or None if it is null or absent. Raises UserError otherwise."""
        value = self.options.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{self.where}/tokenizer_config.json: {name}={value!r} is neither true nor false.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Returns an option, or the default if it is null or absent. Raises UserError if it is no bool."""
        value = self.stated(name)
        return default if value is None else value

    def pieces(self, name: str, algorithm: str) -> PieceFile:
        """Reads a SentencePiece model. Raises UserError if it was trained with another algorithm."""
        found = PieceFile.parse(self.content(name))
        if found.algorithm != algorithm:
            raise UserError(f"{self.where}/{name} holds a {found.algorithm} model, not {algorithm} as in this family.")
        return found


def add_special(tokenizer: Tokenizer, contents: Iterable[str], mask: str = "") -> None:
    """Marks tokens of the vocabulary as special. Raises ValueError if one is missing."""
    for content in dict.fromkeys(contents):
        with_id(tokenizer, content)
        tokenizer.add_special_tokens([AddedToken(content, lstrip=content == mask, normalized=False, special=True)])


def add_listed(tokenizer: Tokenizer, listed: Mapping[str, Any]) -> None:
    """Adds the tokens of `added_tokens_decoder`. Raises ValueError if one cannot have the listed id."""
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
    """Sets the templates of one text and of two texts; "$A" and "$B" stand for texts, and ":1" for the token type."""
    special = {part.partition(":")[0] for part in (*one, *two) if not part.startswith("$")}
    ids = [with_id(tokenizer, token) for token in sorted(special)]
    tokenizer.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=ids)
