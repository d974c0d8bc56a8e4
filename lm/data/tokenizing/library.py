"""Builds tokenizer.json, the file format of Hugging Face's `tokenizers` library.

The functions from `bpe` to `template_of` return parts of the file. `build` returns a whole file for a tokenizer. It
encodes texts with both the tokenizer and the file to check that both give the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.data.tokenizing.base import Tokenizer
from lm.data.tokenizing.special_tokens import TEXT, Template
from lm.errors import UserError

MOST_CHECKED = 5000  # tokens
LITERALS = ("<0x41>", "\u2581a", "</s>", "<unk>", "\u0120b", "##c")  # texts that look like tokens
PROBES = (
    "",
    " ",
    "  The cat,  it's 3.14!\n\n\tA\r\nb ",
    "ﬁ①Ａ½ \u00adx\u200b\ufeff",
    "Grüße, 世界 🎉 e\u0301 \u00a0\u3000\x00\x1c\x85\u2028.",
    *(f"a{literal} b{literal}{literal}" for literal in LITERALS),
)


def bpe(tokens: Mapping[str, int], merges: Sequence[Sequence[str]] = (), **options: Any) -> dict[str, Any]:
    """Returns a model that joins adjacent tokens, with earlier pairs in `merges` taking precedence."""
    defaults = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {"type": "BPE", **defaults, **options, "vocab": dict(tokens), "merges": list(merges)}


def merges_of(tokens: Sequence[str], scores: Sequence[float]) -> Iterator[list[str]]:
    """Yields all token pairs that merge into a token, in descending order of its score, as in SentencePiece's BPE."""
    ids = {token: index for index, token in enumerate(tokens)}
    for index in sorted(range(len(tokens)), key=lambda index: (-scores[index], index)):
        token = tokens[index]
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        yield from sorted(([*pair] for pair in known), key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def byte_characters() -> list[str]:
    """Returns the character that stands for each byte in byte-level vocabularies (Radford 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def sequence(kind: str, steps: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Combines several parts into one. `kind` is the key under which they are listed, such as "decoders"."""
    return {"type": "Sequence", kind: list(steps)} if len(steps) > 1 else steps[0] if steps else None


def added_token(name: str, token: int, *, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, **flags, "special": special}


def template_of(one: Template, two: Template, names: Mapping[int, str]) -> dict[str, Any]:
    """Returns the post-processor that adds special tokens to a single text and to a pair of texts."""

    def steps(template: Template) -> Iterator[dict[str, Any]]:
        texts = iter("AB")
        for token, kind in zip(template.ids, template.types, strict=True):
            if token == TEXT:
                yield {"Sequence": {"id": next(texts), "type_id": kind}}
            else:
                yield {"SpecialToken": {"id": names[token], "type_id": kind}}

    used = sorted({*one.ids, *two.ids} - {TEXT})
    special = {names[token]: {"id": names[token], "ids": [token], "tokens": [names[token]]} for token in used}
    return {
        "type": "TemplateProcessing",
        "single": list(steps(one)),
        "pair": list(steps(two)),
        "special_tokens": special,
    }


def encoded(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


# --- a whole file ---------------------------------------------------------------------------------------------


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """Returns the names of the special tokens in the file, including extra ids, keyed by id.

    In the vocabulary of one of our own tokenizers, a word may have the same name as a special token. In the file, all
    names must be unique, so such a special token is renamed.
    """
    special = {token: name for name, token in tokenizer.special_spellings.items()}
    if tokenizer.unk_id is not None:
        special.setdefault(tokenizer.unk_id, tokenizer.piece(tokenizer.unk_id))
    special |= {token: tokenizer.piece(token) for token in tokenizer.extra_tokens}
    ordinary = {tokenizer.piece(token) for token in range(tokenizer.base_size) if token not in special}
    found: dict[int, str] = {}
    for token, name in special.items():
        while name in ordinary or name in found.values():
            name = f"{name[:-1]}_{name[-1:]}"
        found[token] = name
    return found


def build(tokenizer: Tokenizer, one: Template, two: Template) -> bytes:
    """Returns the content of tokenizer.json for a tokenizer, with templates for single texts and pairs.

    Raises UserError with the reason if the format cannot represent the tokenizer.
    """
    import tokenizers

    names = special_names(tokenizer)
    parts = dict(tokenizer.library_parts(names))
    added = {each["content"]: each for each in parts.pop("added_tokens", [])}
    for token, name in names.items():
        added.setdefault(name, added_token(name, token))
    steps = [*parts.pop("post_processors", [])]
    if one.num_special or two.num_special:
        steps.append(template_of(one, two, names))
    content = encoded(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": sorted(added.values(), key=lambda each: each["id"]),
            "normalizer": None,
            "pre_tokenizer": None,
            "decoder": None,
            **parts,
            "post_processor": sequence("processors", steps),
        }
    )
    library = tokenizers.Tokenizer.from_str(content.decode())
    for token, name in names.items():
        if library.token_to_id(name) != token:
            raise UserError(f"in tokenizer.json, {name} would get the id {library.token_to_id(name)}, not {token}.")
    library.encode_special_tokens = True  # like our tokenizers, which treat "<s>" in a text as ordinary text
    every = range(0, tokenizer.base_size, 1 + tokenizer.base_size // MOST_CHECKED)
    pieces = list(tokenizer.decode_each([[token] for token in every if token not in names]))
    texts = [*PROBES, "".join(pieces[:200]), *pieces]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if library.encode(text, add_special_tokens=False).ids != ids:
            raise UserError(
                f"tokenizer.json cannot represent this tokenizer exactly; ids would differ for {text!r:.60}."
            )
    return content
