"""Recognises a published model: determines its family, its head, the matching config and the purpose of each tensor."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from lm.config import Config, ModelConfig
from lm.config.experiment import replace_settings
from lm.errors import UserError
from lm.huggingface.families import FAMILIES
from lm.huggingface.families.family import REGRESSION, Family, Head, convention
from lm.huggingface.fields import Settings, read_settings
from lm.huggingface.folder import Folder
from lm.huggingface.generation import generation_of
from lm.huggingface.names import Entry, Match, Place, entries_of, find, match, place, same_values
from lm.huggingface.sentences import sentence_vectors
from lm.models import build_model
from lm.models.parameters import abstract_params
from lm.models.protocol import Model
from lm.tasks import task_of

DEFAULT_LENGTH = 512  # tokens per row, unless the model has fewer positions
EMBEDDING = "token_embedding"


@dataclass(frozen=True)
class Published:
    """A published model, represented as one of our models."""

    family: Family
    architecture: str  # the `transformers` class, a key of family.heads
    config: Config  # without the tokenizer and training data
    model: Model
    entries: list[Entry]
    match: Match
    notes: tuple[str, ...] = ()  # for the user, about settings of the folder that the run ignores

    @property
    def head(self) -> Head:
        return self.family.heads[self.architecture]


def recognise(folder: Folder, family_name: str = "", max_length: int = 0, dtype: str = "float32") -> Published:
    """Maps the published model in a folder to one of our models.

    Reads only headers and the few tensors whose values must be checked.

    Args:
        family_name: a key of FAMILIES; if empty, config.json determines the family.
        max_length: the number of positions; 0 means all positions of the published model.
        dtype: the data type used for computation.

    Raises UserError, naming the field or tensor, if the folder is inconsistent or our models cannot represent it.
    """
    family = choose_family(folder, family_name)
    architecture = choose_architecture(folder, family)
    head = family.heads[architecture]
    settings = {**family.settings, **head.settings}
    settings |= read_settings(family.fields, family.neutral, folder.config, folder.source)
    settings["tie_embeddings"] = is_tied(folder, family, head)
    for adapt in family.adapt:
        settings |= adapt(settings, folder)
    config, notes = config_for(folder, head, settings, max_length, dtype)
    model = build_model(config.model, task_of(config).head(config), platform="cpu")
    params = nn.unbox(abstract_params(model))
    entries = entries_of(names_for(family, config.model, head), params, family.unstored)
    found = match(entries, folder, family.spelling, family.names_of_other_heads(head), family.ignored)
    return Published(family, architecture, config, model, entries, found, notes)


def choose_family(folder: Folder, name: str) -> Family:
    kind = folder.config.get("model_type")
    if name:
        if name not in FAMILIES:
            raise UserError(f"--family={name} is unknown; choose one of {', '.join(FAMILIES)}.")
        return FAMILIES[name]
    if kind is None:
        fitting = [each for each in FAMILIES.values() if each.marks and all(_has(folder, mark) for mark in each.marks)]
        if len(fitting) != 1:
            raise UserError(
                f"{folder.source}: config.json has no model_type; set --family to one of {', '.join(FAMILIES)}."
            )
        return fitting[0]
    fitting = [each for each in FAMILIES.values() if kind in each.model_types]
    for each in fitting:
        if named_class(folder) in {*each.heads, *each.same_class}:
            return each
    if fitting:
        return fitting[0]
    raise UserError(
        f"{folder.source}: config.json: model_type={kind!r} is not supported; supported: {', '.join(FAMILIES)}."
    )


def _has(folder: Folder, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in folder.tensors)


def named_class(folder: Folder) -> Any:
    """Returns the first class listed in config.json, or None."""
    named = folder.config.get("architectures")
    return named[0] if isinstance(named, list) and named else None


def choose_architecture(folder: Folder, family: Family) -> str:
    """Returns the `transformers` class of the model in a folder. Raises UserError if its head is not supported."""
    named = named_class(folder)
    if named is not None:
        known = family.same_class.get(named, named)
        if known not in family.heads:
            raise UserError(
                f"{folder.source}: config.json: architectures={[named]!r} is not supported; supported for this family: "
                f"{', '.join(family.heads)}."
            )
    else:
        present = {
            name: sum(_present(folder, family, module, target) for module, target in head.names.items())
            for name, head in family.heads.items()
            if all(
                _present(folder, family, module, target)
                for module, target in head.names.items()
                if not _output_of(target)
            )
        }
        known = max(present, key=lambda name: present[name])  # the first if there is a tie
    if convention(family.heads[known].objective).problem_type:
        problem = folder.config.get("problem_type")
        if problem == "multi_label_classification":
            raise UserError(f"{folder.source}: config.json: problem_type={problem!r} is not supported.")
    return known


def _present(folder: Folder, family: Family, module: str, target: str | Place) -> bool:
    names = [module] if isinstance(target, Place) and target.whole else [f"{module}.weight", f"{module}.bias"]
    return find(folder, family.spelling, *names) is not None


def labels_of(values: dict[str, Any]) -> tuple[str, ...]:
    """Returns the labels of a classifier in the order of its outputs. Raises ValueError if their numbering is invalid.

    Old files list the two default labels of the class even if num_labels is not 2. If num_labels differs from the
    number of listed labels, num_labels takes precedence, as in `transformers`, and the labels get generic names.
    """
    named, number = values.get("id2label"), values.get("num_labels")
    if not named or number not in (None, len(named)):
        return tuple(f"LABEL_{n}" for n in range(number or values.get("_num_labels") or 2))
    numbered = {int(number): str(label) for number, label in named.items()}
    if sorted(numbered) != list(range(len(numbered))) or len(set(numbered.values())) < len(numbered):
        raise ValueError(f"id2label={named!r:.80} must number distinct labels consecutively from 0")
    return tuple(numbered[n] for n in range(len(numbered)))


def is_tied(folder: Folder, family: Family, head: Head) -> bool:
    """Returns whether the token embedding also serves as the output matrix.

    If config.json ties the two matrices but the folder contains different values for them, they are treated as untied,
    as in `transformers`.

    Raises UserError if config.json does not tie the matrices and the folder lacks the output matrix.
    """
    tied = folder.config.get("tie_word_embeddings", family.tie_default)
    if not any(_output_of(target) for target in head.names.values()):
        return True  # there is no output matrix
    (output,) = (module for module, target in head.names.items() if _output_of(target))
    found = find(folder, family.spelling, f"{output}.weight")
    if not tied or tied is None:
        if found is None:
            raise UserError(
                f"{folder.source} lacks the tensor {output}.weight, but config.json has tie_word_embeddings={tied!r}."
            )
        return False
    embedding = find(folder, family.spelling, *_embedding_names(family))
    return found is None or embedding is None or same_values(folder, found, embedding)


def _output_of(target: str | Place) -> bool:
    return target == "output"


def _embedding_names(family: Family) -> list[str]:
    body = family.names if not callable(family.names) else family.names(ModelConfig())
    for module, target in body.items():
        goal = target if isinstance(target, Place) else Place((target,))
        if goal.modules == (EMBEDDING,):
            return [f"{name}.weight" for name in (module, *goal.also)]
    raise AssertionError(f"{family.name} names no {EMBEDDING}")


def names_for(family: Family, model: ModelConfig, head: Head) -> dict[str, Any]:
    """Returns a mapping from all module names in the files to our modules.

    If the output matrix is tied, its name becomes an alias of the embedding.
    """
    names = {**(family.names(model) if callable(family.names) else family.names), **head.names}
    outputs = [module for module, target in names.items() if _output_of(target)]
    if not model.tie_embeddings or not outputs:
        return names
    tied: dict[str, Any] = {}
    for module, target in names.items():
        goal = target if isinstance(target, Place) else place(target)
        if goal.modules == (EMBEDDING,):
            tied[module] = dataclasses.replace(goal, also=(*goal.also, *outputs))
        elif module not in outputs:
            tied[module] = target
    return tied


def config_for(
    folder: Folder, head: Head, settings: Settings, max_length: int, dtype: str
) -> tuple[Config, tuple[str, ...]]:
    """Returns the config of a run with this model, and notes about settings of the folder that the run ignores.

    Raises UserError if our config cannot represent the model.
    """
    longest = settings.get("max_length", 0)
    if max_length and longest and max_length > longest and settings.get("positions") == "learned":
        raise UserError(f"--max_length={max_length} exceeds the {longest} positions of {folder.source}.")
    settings["max_length"] = max_length or longest or DEFAULT_LENGTH
    length = min(settings["max_length"], DEFAULT_LENGTH)
    data: dict[str, Any] = {"sequence_length": length, "tokenizer": {"kind": "huggingface", "path": "tokenizer.json"}}
    described = convention(head.objective)
    generation, notes = dict[str, Any](), tuple[str, ...]()
    if described.overlap:
        data["context_overlap"] = int(length * described.overlap)
    objective, model = {"name": head.objective, **head.objective_settings}, {**settings, "dtype": dtype}
    if described.labels:
        try:
            labels = labels_of(folder.config)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{folder.source}: config.json: {error}.") from None
        stated = folder.config.get("problem_type")
        if described.problem_type and (len(labels) == 1 or stated == convention(REGRESSION).problem_type):
            objective["name"] = REGRESSION
            if len(labels) > 1:
                raise UserError(
                    f"{folder.source}: config.json: regression with {len(labels)} outputs is not supported."
                )
        else:
            data["labels"] = labels
    elif described.vectors:
        vectors = sentence_vectors(folder)
        model["pooling"] = vectors.pooling or ("mean" if settings.get("family") == "encoder" else "last")
        data["sequence_length"] = min(vectors.length or length, settings["max_length"])
        notes = vectors.notes
    elif described.generates:
        generation, notes = generation_of(folder, settings["family"], settings["max_length"])
    values = {"data": data, "model": model, "objective": objective, "eval": {"prompts": ()}}
    try:
        config = Config.from_dict(values, reset_unread=True)
        generating = replace_settings(config, {f"eval.{name}": value for name, value in generation.items()})
        return Config.from_dict(generating.to_dict()), notes  # from_dict checks the ranges of the values
    except UserError as error:
        raise UserError(f"{folder.source}: {error}") from None
