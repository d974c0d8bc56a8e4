"""Converts text to token ids and back. TOKENIZERS is the registry of tokenizers.

`base.py` defines the interface. Each run directory contains the tokenizer of the run, which `Tokenizer.save` writes and
`load_tokenizer` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.config import TokenizerConfig
from lm.data.reading.encodings import read_errors
from lm.data.reading.format import open_text
from lm.data.tokenizing.base import INFO_FILE, Tokenizer
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.data.tokenizing.marian import SIDES, VOCABULARY, MarianTokenizer
from lm.data.tokenizing.sentencepiece import SentencePieceTokenizer
from lm.data.tokenizing.special_token_files import read_files
from lm.data.tokenizing.vocabularies import CharacterTokenizer, WordTokenizer
from lm.errors import UserError
from lm.files import expanded, parse_json, read_file

# Maps each value of data.tokenizer.kind to its class.
TOKENIZERS: dict[str, type[Tokenizer]] = {
    each.kind: each
    for each in (
        ByteTokenizer,
        CharacterTokenizer,
        WordTokenizer,
        SentencePieceTokenizer,
        HuggingFaceTokenizer,
        MarianTokenizer,
    )
}


def needs_text(config: TokenizerConfig) -> bool:
    """Returns whether `build_tokenizer` needs texts to train on."""
    return TOKENIZERS[config.kind].learns and not config.path


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer trained on `texts` or loaded from `config.path`. Raises UserError on failure."""
    cls = TOKENIZERS[config.kind]
    tokenizer = _from_file(cls, config) if config.path else cls.train(config, texts)
    return tokenizer.with_extra_ids(config.extra_ids)


def _from_file(cls: type[Tokenizer], config: TokenizerConfig) -> Tokenizer:
    setting = "config.data.tokenizer.path"
    if not cls.file_type:
        raise UserError(f"{setting}: a {config.kind} tokenizer cannot be loaded from a file; leave this setting empty.")
    path = expanded(config.path)
    if not path.is_file():
        raise UserError(f"{setting}: there is no file {config.path}.")
    of_run = path.name == cls.file_name and path.with_name(INFO_FILE).is_file()
    try:
        if of_run and not (config.bos_token or config.eos_token):
            return load_tokenizer(path.parent)  # with its special tokens, which are stored beside it
        with read_errors(path):
            content = _read_text(path).encode("utf-8") if cls.file_is_text else read_file(path)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
    try:
        return cls.load(path, content, config)
    except Exception as error:  # the libraries raise plain Exception and RuntimeError for invalid files
        raise UserError(f"{setting}: {config.path} is not a usable {cls.file_type}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return str(error).removesuffix(".")


def _read_text(path: Path) -> str:
    with open_text(path) as file:
        return file.read()


def published_tokenizer(
    content_of: Callable[[str], bytes | None], where: str, rows: int | None = None
) -> HuggingFaceTokenizer | MarianTokenizer:
    """Returns the tokenizer of a published model, with its special tokens.

    Raises UserError if the model has no tokenizer.

    Args:
        content_of: a function that maps a file name such as "tokenizer.json" to the content of the file, or to None if
            there is no such file.
        where: the name of the model, for error messages.
        rows: the number of rows in the embedding. Only special tokens may have ids beyond the last row.
    """
    files = read_files(content_of, where)
    try:
        if (content := content_of(HuggingFaceTokenizer.file_name)) is not None:
            return HuggingFaceTokenizer.from_files(content, files, rows=rows)
        models = {side: model for side, name in SIDES.items() if (model := content_of(name)) is not None}
        if len(models) == len(SIDES) and (vocabulary := content_of(VOCABULARY)) is not None:
            return MarianTokenizer.from_files(vocabulary, models, files)
    except Exception as error:  # the libraries raise plain Exception and RuntimeError for invalid files
        raise UserError(f"{where}: the tokenizer is not usable: {_reason(error)}.") from error
    raise UserError(
        f"{where} has no {HuggingFaceTokenizer.file_name}; create it with AutoTokenizer.from_pretrained(...)"
        ".save_pretrained(...) from the transformers library."
    )


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """Returns a tokenizer written by `Tokenizer.save`. Raises UserError if files are missing or damaged."""
    directory = Path(directory)
    try:
        info = parse_json(read_file(directory / INFO_FILE))
        fingerprint = info["fingerprint"]
        content = read_file(directory / TOKENIZERS[info["kind"]].file_name)
        tokenizer = restored(info["kind"], content, info["options"])
    except FileNotFoundError as error:
        raise UserError(f"{directory}: the directory contains no tokenizer ({error.filename} is missing).") from error
    except Exception as error:
        raise UserError(f"{directory}: the tokenizer cannot be read ({type(error).__name__}: {error}).") from error
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{directory}: the tokenizer has changed since it was saved (its file was modified).")
    return tokenizer


def saved(tokenizer: Tokenizer) -> tuple[str, bytes, dict[str, Any]]:
    """Returns the kind, content and options of a tokenizer, from which `restored` recreates the tokenizer."""
    return tokenizer.kind, tokenizer._content(), tokenizer._options()


def restored(kind: str, content: bytes, options: Mapping[str, Any]) -> Tokenizer:
    options = dict(options)
    extra_ids = options.pop("extra_ids", 0)
    return TOKENIZERS[kind]._from_content(content, options).with_extra_ids(extra_ids)
