"""Builds the tokenizer files for exporting runs that were not imported or whose chat template has changed."""

from __future__ import annotations

from typing import Any

from lm.config import Config
from lm.data.tokenizing import library
from lm.data.tokenizing.base import Tokenizer, Tokenizers
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.data.tokenizing.special_token_files import CHAT_TEMPLATE, NAMES
from lm.data.tokenizing.special_tokens import TEXT, Template
from lm.errors import UserError
from lm.tasks import task_of

FILE = "tokenizer.json"


def tokenizer_files(config: Config, tokenizers: Tokenizers) -> dict[str, bytes]:
    """Returns the files, keyed by name, from which AutoTokenizer in `transformers` can load the tokenizer of a run.

    Raises UserError with the reason if the file format cannot represent the tokenizer.
    """
    if config.data.separate_vocabularies:
        raise UserError("the run has separate source and target vocabularies, but tokenizer.json can hold only one.")
    tokenizer = tokenizers.target
    values = tokenizer_config(config, tokenizer)
    files = {**tokenizer.own_files()} or {FILE: library.build(tokenizer, *templates(config, tokenizer))}
    template = chat_template(config, tokenizer)
    if template:
        values["chat_template"] = template  # where `transformers` 4 reads it
        files[CHAT_TEMPLATE] = template.encode()
    return files | {NAMES: library.encoded(values)}


def changed_files(config: Config, tokenizer: Tokenizer, values: dict[str, Any] | None) -> dict[str, bytes]:
    """Returns the files of an imported tokenizer that must be replaced: those with the chat template if it has changed.

    `values` is the content of tokenizer_config.json, or None if there is no such file.
    """
    template = chat_template(config, tokenizer)
    if template == (tokenizer.chat_template or ""):
        return {}
    return {
        CHAT_TEMPLATE: template.encode(),
        NAMES: library.encoded({**(values or {}), "chat_template": template}),
    }


def templates(config: Config, tokenizer: Tokenizer) -> tuple[Template, Template]:
    """Returns the templates that add special tokens to one text and to two texts, as the run's task does.

    For a decoder that generates text, the text is a prompt to continue, so no special token follows it.
    """
    special = tokenizer.special_tokens
    if config.model.family == "encoder_decoder":
        return special.for_source, special.as_source().for_pair
    if config.model.family == "decoder" and task_of(config).writes_text:
        bos = () if special.bos is None else (special.bos,)
        return Template.of_one(*bos, TEXT), Template.of_one(*bos, TEXT, TEXT)
    return special.for_text, special.for_pair


def tokenizer_config(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json."""
    names, special, model = library.special_names(tokenizer), tokenizer.special_tokens, config.model
    ids = {"bos": special.bos, "eos": special.eos, "unk": tokenizer.unk_id}
    ids["pad"] = special.pad if special.pad is not None or tokenizer.pad_id not in names else tokenizer.pad_id
    mask = special.mask
    if model.family == "encoder":
        ids |= {"cls": special.bos, "sep": special.eos}
        if mask is None and tokenizer.extra_tokens:
            mask = tokenizer.mask_id
    ids["mask"] = mask
    named = set(ids.values())
    types = ["token_type_ids"] if model.token_types > 1 else []
    values: dict[str, Any] = {
        "tokenizer_class": tokenizer.published_class,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *types, "attention_mask"],
        **{f"{name}_token": names[token] for name, token in ids.items() if token is not None},
    }
    if model.max_length:
        values["model_max_length"] = model.max_length
    if extra := [names[token] for token in tokenizer.extra_tokens if token not in named]:
        values["additional_special_tokens"] = extra
    return values


def chat_template(config: Config, tokenizer: Tokenizer) -> str:
    """Returns the chat template used in training or else the one of the tokenizer, or "" if there is neither."""
    if not (config.data.chat_template or tokenizer.chat_template):
        return ""
    return ChatTemplate(tokenizer, config.data.chat_template).text
