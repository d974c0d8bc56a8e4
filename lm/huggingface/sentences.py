"""Reads and writes the files of sentence-transformers, which record how a model maps a text to a vector.

modules.json lists the modules in order: the Transformer, the pooling and, optionally, scaling to length 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from lm.errors import UserError
from lm.files import parse_json
from lm.huggingface.base import Folder

MODULES = "modules.json"
# The files that may specify the maximum length; the first one that exists is read.
LENGTHS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PROMPTS = "config_sentence_transformers.json"
POOLING_FOLDER = "1_Pooling"  # used in exports, and for folders without modules.json
POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "first",  # in newer files
    "mean": "mean",
    "lasttoken": "last",
}

NAMES_OF_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@dataclass(frozen=True)
class SentenceVectors:
    """How a text is mapped to a vector. An empty string or 0 means that the folder does not specify the value."""

    pooling: str = ""  # a value of model.pooling
    length: int = 0  # the number of tokens to which a text is truncated
    unit_length: bool = True  # whether vectors are scaled to length 1; our contrastive models always scale them

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about differences from sentence-transformers."""
        if self.unit_length:
            return ()
        return (
            f"vectors will have length 1, although {MODULES} has no Normalize module; lm.predict "
            f"--pooling={self.pooling} leaves them unscaled",
        )


def sentence_vectors(folder: Folder) -> SentenceVectors:
    """Reads the sentence-transformers files of a folder. Raises UserError if a module is not supported."""
    listed = folder.content(MODULES)
    if listed is None:
        declared = folder.read_object(f"{POOLING_FOLDER}/config.json")
        return SentenceVectors() if declared is None else SentenceVectors(_pooling(declared, folder, POOLING_FOLDER))
    where = f"{folder.source}: {MODULES}"
    try:
        modules = [(each["type"].rpartition(".")[2], each.get("path", "")) for each in parse_json(listed)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} is not a list of modules with a type and a path ({error}).") from None
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        named = f"the module {unknown[0]}" if unknown else f"the order {', '.join(kinds) or '(no modules)'}"
        raise UserError(
            f"{where}: {named} is not supported; supported: Transformer, Pooling and, optionally, Normalize."
        )
    path = modules[1][1]
    declared = folder.read_object(f"{path}/config.json")
    if declared is None:
        raise UserError(f"{where} names the module {path!r}, but {path}/config.json is missing.")
    _check_prompt(folder)
    return SentenceVectors(_pooling(declared, folder, path), _length(folder), "Normalize" in kinds)


def sentence_files(pooling: str, length: int, size: int) -> dict[str, bytes]:
    """Returns files, keyed by name, that make sentence-transformers compute the same vectors as our model, scaled to
    length 1.

    Args:
        pooling: the value of model.pooling.
        length: the number of tokens to which a text is truncated.
        size: the number of values in a vector.
    """
    modes = {f"pooling_mode_{name}": False for name in NAMES_OF_MODES}
    (mode,) = (name for name in modes if POOLINGS.get(name) == pooling)
    kinds = (("", "Transformer"), (POOLING_FOLDER, "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    return {
        MODULES: _encoded(modules),
        f"{POOLING_FOLDER}/config.json": _encoded({"word_embedding_dimension": size, **modes, mode: True}),
        LENGTHS[0]: _encoded({"max_seq_length": length, "do_lower_case": False}),
    }


def _encoded(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _pooling(declared: dict[str, Any], folder: Folder, path: str) -> str:
    chosen = [name for name, value in declared.items() if name.startswith("pooling_mode_") and value is True]
    if mode := declared.get("pooling_mode"):
        chosen = list(mode) if isinstance(mode, (list, tuple)) else [mode]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UserError(
            f"{folder.source}: {path}/config.json: {', '.join(map(str, chosen)) or 'no pooling'} is not supported; "
            "supported: cls, mean, lasttoken."
        )
    return POOLINGS[chosen[0]]


def _length(folder: Folder) -> int:
    name = next((name for name in LENGTHS if folder.content(name) is not None), LENGTHS[0])
    values = folder.read_object(name) or {}
    where, length = f"{folder.source}: {name}", values.get("max_seq_length")
    if values.get("do_lower_case"):
        raise UserError(f"{where}: do_lower_case=True is not supported; lowercase the texts, and remove the field.")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 3):
        raise UserError(f"{where}: max_seq_length={length!r} is not a valid number of tokens.")
    return length or 0


def _check_prompt(folder: Folder) -> None:
    """Raises UserError if the folder sets a default prompt, which would be prepended to every text.

    Other prompts are optional and are ignored.
    """
    name = (folder.read_object(PROMPTS) or {}).get("default_prompt_name")
    if name is not None:
        raise UserError(
            f"{folder.source}: {PROMPTS}: default_prompt_name={name!r} is not supported; remove the field, and put the "
            "prompt before each text."
        )
