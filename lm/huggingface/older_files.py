"""Code shared by the builders of older tokenizers: files, options and special tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from lm.data.tokenizing.piece_files import PieceFile
from lm.data.tokenizing.special_token_files import NAMES
from lm.errors import UserError

ADDED = "added_tokens.json"  # maps tokens to ids; not needed if tokenizer_config.json has added_tokens_decoder


@dataclass(frozen=True)
class Older:
    """The files of one tokenizer.

    Attributes:
        content: a function that returns the content of an existing file.
        options: the merged contents of tokenizer_config.json and special_tokens_map.json.
        usual: maps names such as "eos_token" to the default special tokens of the class.
        where: the folder, for error messages.
        listed: maps the ids of added tokens to their contents and flags.
        listed_in: the file that lists the added tokens.
    """

    content: Callable[[str], bytes]
    options: Mapping[str, Any]
    usual: Mapping[str, str]
    where: str
    listed: Mapping[str, Any] = field(default_factory=dict)
    listed_in: str = NAMES

    @property
    def names(self) -> dict[str, str]:
        """The special tokens, keyed by names such as "eos_token"."""
        return {name: token_text(self.options.get(name)) or token for name, token in self.usual.items()}

    def token(self, name: str) -> str:
        """Returns the special token given by the option {name}_token."""
        return self.names[f"{name}_token"]

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


def listed_tokens(ids: Mapping[str, Any], named: Iterable[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Returns the tokens of added_tokens.json in the format of added_tokens_decoder.

    A token is special if one of the objects in `named` lists it. As in `transformers`, special tokens are matched in
    the original text, and ordinary tokens in the normalised text.

    Args:
        ids: the content of the file, which maps tokens to ids.
        named: the contents of the files that list the special tokens.
        where: the folder, for error messages.

    Raises UserError if the ids are not distinct integers.
    """
    values = list(ids.values())
    if not all(type(value) is int and value >= 0 for value in values) or len({*values}) < len(values):
        raise UserError(f"{where}/{ADDED}: the ids are not distinct integers; correct or remove the file.")
    special: set[Any] = set()
    for key, value in (item for each in named for item in each.items()):
        if key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            special |= {token_text(token) for token in tokens}
        elif key.endswith("_token"):
            special.add(token_text(value))
    return {
        str(number): {"content": token, "special": token in special, "normalized": token not in special}
        for token, number in ids.items()
    }


def token_text(value: Any) -> str:
    """Returns the text of a token that is given as a string or as an object with flags, or "" for any other value."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def add_special(older: Older, tokenizer: Tokenizer, contents: Iterable[str], mask: str = "") -> None:
    """Marks tokens as special. Raises ValueError if one is neither in the vocabulary nor an added token."""
    contents = list(dict.fromkeys(contents))
    if any(tokenizer.token_to_id(content) is None for content in contents):
        add_listed(older, tokenizer)
    for content in contents:
        with_id(tokenizer, content)
        tokenizer.add_special_tokens([AddedToken(content, lstrip=content == mask, normalized=False, special=True)])


def add_listed(older: Older, tokenizer: Tokenizer) -> None:
    """Adds the listed tokens. Raises ValueError if a token cannot have its listed id."""
    for number, values in sorted((int(number), values) for number, values in older.listed.items()):
        flags = {name: bool(values.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
        token = AddedToken(values["content"], **flags, special=bool(values.get("special")))
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != number:
            raise ValueError(
                f"the token {token.content!r} of {older.listed_in} cannot have the id {number}; correct this file"
            )


def with_id(tokenizer: Tokenizer, token: str) -> tuple[str, int]:
    """Returns a token and its id. Raises ValueError if the vocabulary lacks the token."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the vocabulary lacks the special token {token!r}")
    return token, number


def frame(tokenizer: Tokenizer, one: list[str], two: list[str]) -> None:
    """Sets the templates for one and for two texts. "$A" and "$B" stand for the texts, and ":1" for token type 1."""
    special = {part.partition(":")[0] for part in (*one, *two) if not part.startswith("$")}
    ids = [with_id(tokenizer, token) for token in sorted(special)]
    tokenizer.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=ids)
