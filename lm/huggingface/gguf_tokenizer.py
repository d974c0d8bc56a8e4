"""Builds tokenizer.json and tokenizer_config.json from the metadata of a GGUF file.

A GGUF file names the rules that split a text before the merges are applied (`tokenizer.ggml.pre`) but omits the rules.
PRE_TOKENIZERS lists the names whose rules are known here. All others are rejected, because wrong rules would silently
produce different tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm.data.tokenizing.library import added_token, bpe, byte_level, encoded, merges_of, split, template_of
from lm.data.tokenizing.piece_files import SPACE
from lm.data.tokenizing.special_tokens import TEXT, Template
from lm.errors import UserError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
PREFIX = "tokenizer.ggml."
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # names in `transformers` -> names in GGUF
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


# Maps tokenizer.ggml.pre to the pre-tokenizers, the normalizer, and whether a word that is a token skips the merges.
PRE_TOKENIZERS: dict[str, tuple[list[dict[str, Any]], dict[str, str] | None, bool]] = {
    "gpt-2": ([byte_level(True)], None, False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, byte_level(True)], None, False),
    "llama-bpe": ([split(WORDS % r"\p{N}{1,3}"), byte_level(False)], None, True),
    "qwen2": ([split(WORDS % r"\p{N}"), byte_level(False)], {"type": "NFC"}, False),
}


def tokenizer_files(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns the contents of tokenizer.json and tokenizer_config.json, or an empty dict if there is no tokenizer.

    Raises UserError if the tokenizer is damaged or its type is unknown.
    """
    kind = metadata.get(f"{PREFIX}model")
    if kind is None:
        return {}
    tokens, types = metadata.get(f"{PREFIX}tokens", []), metadata.get(f"{PREFIX}token_type", [])
    if not tokens or not isinstance(tokens[0], str) or len(types) != len(tokens):
        raise UserError(f"{where}: the tokenizer must have tokens and one type for each token.")
    for name in (*SPECIAL.values(), "eot"):
        token = metadata.get(f"{PREFIX}{name}_token_id", 0)
        if type(token) is not int or not 0 <= token < len(tokens):
            raise UserError(f"{where}: {PREFIX}{name}_token_id={token!r:.40} is not a token id.")
    if kind == "gpt2":
        parts = _byte_pairs(metadata, where)
    elif kind == "llama":
        parts = _sentencepiece(metadata, where)
    else:
        raise UserError(f"{where}: the tokenizer type {kind!r:.40} is not supported; supported: gpt2, llama.")
    added = [
        added_token(content, token, special=types[token] != USER_DEFINED)
        for token, content in enumerate(tokens)
        if types[token] in (CONTROL, USER_DEFINED) or (types[token] == UNKNOWN and kind == "llama")
    ]
    bos = metadata.get(f"{PREFIX}bos_token_id")
    adds_bos = metadata.get(f"{PREFIX}add_bos_token", kind == "llama")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **parts,
        "post_processor": _before_each(tokens[bos], bos) if adds_bos and bos is not None else None,
    }
    names = {f"{name}_token": metadata.get(f"{PREFIX}{key}_token_id") for name, key in SPECIAL.items()}
    config: dict[str, Any] = {name: tokens[token] for name, token in names.items() if token is not None}
    config |= {
        "add_bos_token": bool(adds_bos),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return {"tokenizer.json": encoded(tokenizer), "tokenizer_config.json": encoded(config)}


def special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json fields for special tokens. There may be several EOS tokens."""
    ids = {f"{name}_token_id": metadata.get(f"{PREFIX}{SPECIAL[name]}_token_id") for name in ("bos", "eos", "pad")}
    found: dict[str, Any] = {name: token for name, token in ids.items() if token is not None}
    turn = metadata.get(f"{PREFIX}eot_token_id")  # the end-of-turn token of chats
    if turn is not None and turn != found.get("eos_token_id", turn):
        found["eos_token_id"] = [found["eos_token_id"], turn]
    return found


def _byte_pairs(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the parts of tokenizer.json for byte-level BPE with the stored merges."""
    pre = metadata.get(f"{PREFIX}pre")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"{where}: the pre-tokenizer {pre!r:.40} is not supported in GGUF; supported: {known}.")
    steps, normalizer, ignore_merges = PRE_TOKENIZERS[pre]
    merges = [str(merge).split(" ") for merge in metadata.get(f"{PREFIX}merges", ())]
    if any(len(merge) != 2 for merge in merges):
        raise UserError(f"{where}: each merge of the tokenizer must join two tokens; the merges are damaged.")
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "decoder": byte_level(True),
        "model": bpe(_ids(metadata[f"{PREFIX}tokens"]), merges, ignore_merges=ignore_merges),
    }


def _sentencepiece(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the parts of tokenizer.json for SentencePiece BPE. Its merges are derived from the scores."""
    tokens, scores = metadata[f"{PREFIX}tokens"], metadata.get(f"{PREFIX}scores", [])
    if len(scores) != len(tokens):
        raise UserError(f"{where}: the tokenizer must have one score for each token.")
    prefix = metadata.get(f"{PREFIX}add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    before = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    unknown = metadata.get(f"{PREFIX}unknown_token_id")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, *strip]},
        "model": bpe(
            _ids(tokens),
            list(merges_of(tokens, scores)),
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        ),
    }


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _before_each(token: str, index: int) -> dict[str, Any]:
    """Returns a post-processor that prepends a token to each text."""
    two = Template((index, TEXT, index, TEXT), (0, 0, 1, 1))
    return template_of(Template.of_one(index, TEXT), two, {index: token})
