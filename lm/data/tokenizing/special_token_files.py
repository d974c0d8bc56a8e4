"""Reads the special tokens of a published tokenizer from the files beside its tokenizer.json.

tokenizer_config.json or special_tokens_map.json holds the names of the tokens. The post-processor in tokenizer.json
holds the templates. generation_config.json or config.json holds the tokens that begin and end generated text. A piece
of the vocabulary that merely looks like a special token (Qwen 3 and Gemma 3 have an ordinary piece "<s>") is never
treated as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from lm.errors import UserError
from lm.files import parse_json, read_file

NAMES, OLD_NAMES, GENERATION, MODEL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
CHAT_TEMPLATE = "chat_template.jinja"
Files = Mapping[str, Any]  # maps the name of a file to its parsed JSON, or CHAT_TEMPLATE to its text

# The usual names of BOS and EOS, for a tokenizer.json without other files and without a post-processor.
USUAL = (
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("[CLS]", "[SEP]"),
    ("<|endoftext|>", "<|endoftext|>"),
)
USUAL_PAD = ("<pad>", "[PAD]", "<|padding|>", "<|pad|>")
USUAL_MASK = ("[MASK]", "<mask>")


def read_files(content_of: Callable[[str], bytes | None], where: str) -> dict[str, Any]:
    """Returns the parsed files that describe a model's special tokens, keyed by file name.

    Raises UserError if one of them is damaged.

    Args:
        content_of: a function that maps a file name such as "config.json" to the content of the file, or to None if
            there is no such file.
        where: the folder of the files, for error messages.
    """
    found: dict[str, Any] = {}
    for name in (NAMES, OLD_NAMES, GENERATION, MODEL, CHAT_TEMPLATE):
        content = content_of(name)
        if content is None:
            continue
        try:
            found[name] = content.decode("utf-8") if name == CHAT_TEMPLATE else parse_json(content)
        except ValueError as error:
            raise UserError(f"{where}/{name} cannot be read ({error}); correct or remove the file.") from error
        if name != CHAT_TEMPLATE and not isinstance(found[name], dict):
            raise UserError(f"{where}/{name}: the file must hold one JSON object; correct or remove it.")
    return found


def files_beside(path: Path) -> dict[str, Any]:
    """Reads the files that describe special tokens, from the folder that contains `path` (see `read_files`)."""

    def content_of(name: str) -> bytes | None:
        other = path.with_name(name)
        return read_file(other) if other.is_file() else None

    return read_files(content_of, str(path.parent))


def special_tokens(
    tokenizer: Mapping[str, Any], files: Files, bos_token: str = "", eos_token: str = ""
) -> SpecialTokens:
    """Returns the special tokens of a tokenizer.

    Args:
        tokenizer: the content of tokenizer.json.
        files: the files beside it (see `read_files`).
        bos_token, eos_token: tokens to use instead of the BOS and EOS tokens named in the files. If either is given,
            texts are framed as in our own tokenizers (`bos text eos`), not as specified by the post-processor.

    Raises ValueError if the files contradict each other or if no EOS token is found.
    """
    names = _names(files)
    every = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or ()}
    added = {each["content"]: each["id"] for each in tokenizer.get("added_tokens") or () if each.get("special")}
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # a unigram model lists pairs of a piece and its score
        vocabulary = {piece: token for token, (piece, _) in enumerate(vocabulary)}

    def id_of(token: str) -> int | None:
        return every.get(token, vocabulary.get(token))

    one, two = _templates(tokenizer.get("post_processor"), files.get(NAMES, {}), names, id_of)
    at = one.ids.index(TEXT)
    bos = one.ids[at - 1] if at else None
    pairs = [(added[bos], added[eos]) for bos, eos in USUAL if bos in added and eos in added]
    usual = pairs[:1] if NAMES not in files else []

    def named(*keys: str) -> int | None:
        """Returns the id of the token named by the first of `keys` found in the files, or None if none is found."""
        for key in keys:
            if key in names:
                return _known(names[key], f"the {key}", id_of)
        return None

    eos = named("eos_token", "sep_token")
    ends = generation_ids(files, "eos_token_id")
    if eos is None:
        eos = next(iter([*one.ids[at + 1 :], *ends, *(end for _, end in usual)]), None)
    templates: dict[str, Any] = {"one": one, "two": two}
    if one.num_special == 0 and usual:
        bos, templates = usual[0][0], {}
    if bos_token or eos_token:
        bos = _known(bos_token, "data.tokenizer.bos_token", id_of) if bos_token else bos
        eos, templates = (_known(eos_token, "data.tokenizer.eos_token", id_of) if eos_token else eos), {}
    if eos is None:
        raise ValueError(
            "the file has no special token with a usual name for BOS or EOS; set data.tokenizer.bos_token and eos_token"
        )
    start, first = (generation_ids(files, f"{name}_token_id") for name in ("decoder_start", "forced_bos"))
    return SpecialTokens(
        bos=bos,
        eos=eos,
        other_stops=tuple(token for token in ends if token != eos),
        pad=_optional(names.get("pad_token"), USUAL_PAD, added, id_of),
        mask=_optional(names.get("mask_token"), USUAL_MASK, added, id_of),
        first_of_target=next(iter(start), None),
        forced_first=next(iter(first), None),
        chat_template=_chat_template(files),
        names=names,
        **templates,
    )


def _names(files: Files) -> dict[str, str]:
    """Returns the tokens named in the files, keyed by "bos_token" etc. tokenizer_config.json takes precedence."""
    found: dict[str, str] = {}
    for values in (files.get(NAMES, {}), files.get(OLD_NAMES, {})):
        for key, value in values.items():
            text = value.get("content") if isinstance(value, dict) else value
            # A token that tokenizer_config.json sets to null does not exist, whatever the older file says.
            if key.endswith("_token") and key not in found and isinstance(text, str | None):
                found[key] = text or ""
    return {key: text for key, text in found.items() if text}


def _known(token: str, what: str, id_of: Callable[[str], int | None]) -> int:
    found = id_of(token)
    if found is None:
        raise ValueError(
            f"it has no token {token!r}, which is given as {what}; set data.tokenizer.bos_token and eos_token"
        )
    return found


def _optional(
    name: str | None, usual: tuple[str, ...], added: Mapping[str, int], id_of: Callable[[str], int | None]
) -> int | None:
    """Returns the id of the token `name` or, if `name` is None, of a special added token with a name in `usual`."""
    if name is not None:
        return id_of(name)
    return next((added[token] for token in usual if token in added), None)


def generation_ids(files: Files, key: str) -> tuple[int, ...]:
    """Returns the ids under a key of generation_config.json or, if the key is absent there, of config.json."""
    for name in (GENERATION, MODEL):
        value = files.get(name, {}).get(key)
        if value is not None:
            ids = tuple(dict.fromkeys(value if isinstance(value, list) else [value]))
            if not all(type(each) is int and each >= 0 for each in ids):
                raise ValueError(f"{name} has {key}={value!r}, which is neither a token id nor a list of token ids")
            return ids
    return ()


def _chat_template(files: Files) -> str | None:
    """Returns the chat template. If tokenizer_config.json has several templates, the one named "default" is used."""
    found = files.get(CHAT_TEMPLATE, files.get(NAMES, {}).get("chat_template"))
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found or None


def _templates(
    processor: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    names: Mapping[str, str],
    id_of: Callable[[str], int | None],
) -> tuple[Template, Template]:
    """Returns the templates for one text and for two texts.

    As in transformers 5, `add_bos_token` and `add_eos_token` in tokenizer_config.json override the post-processor.
    """
    flags = {f"{name}_token": config.get(f"add_{name}_token") for name in ("bos", "eos")}
    if any(flag is not None for flag in flags.values()):
        bos, eos = (
            [_known(names[name], f"the {name}", id_of)] if flag and name in names else []
            for name, flag in flags.items()
        )
        each = (*bos, TEXT, *eos)
        return Template.of_one(*each), Template((*each, *each), (0,) * len(each) + (1,) * len(each))
    found = list(_processors(processor))
    if not found:
        return Template.of_one(TEXT), Template.of_one(TEXT, TEXT)
    if len(found) > 1:
        raise ValueError(f"its post-processor has {len(found)} steps that add tokens; only one is supported")
    (step,) = found
    if step["type"] == "TemplateProcessing":
        one, two = (_template(step[name], step["special_tokens"]) for name in ("single", "pair"))
        return one, two
    if step["type"] not in ("BertProcessing", "RobertaProcessing"):
        raise ValueError(f"its post-processor {step['type']} is not supported")
    cls, sep = step["cls"][1], step["sep"][1]
    two = Template.of_one(cls, TEXT, sep, sep, TEXT, sep)
    if step["type"] == "BertProcessing":
        two = Template((cls, TEXT, sep, TEXT, sep), (0, 0, 0, 1, 1))
    return Template.of_one(cls, TEXT, sep), two


def _processors(processor: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yields those steps of a post-processor that may add tokens."""
    if processor is None or processor["type"] == "ByteLevel":
        return
    if processor["type"] == "Sequence":
        for each in processor["processors"]:
            yield from _processors(each)
    else:
        yield processor


def _template(entries: list[Mapping[str, Any]], tokens: Mapping[str, Any]) -> Template:
    """Converts the template of a TemplateProcessing step, in which one special token may stand for several ids."""
    ids: list[int] = []
    types: list[int] = []
    for entry in entries:
        ((kind, value),) = entry.items()
        new = [TEXT] if kind == "Sequence" else tokens[value["id"]]["ids"]
        ids += new
        types += [value["type_id"]] * len(new)
    return Template(tuple(ids), tuple(types))
