"""Defines the data classes that describe families of published models, their `transformers` classes and their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.config import ModelConfig
from lm.huggingface.fields import Field, Settings
from lm.huggingface.names import Names, Spelling, pattern_of


@dataclass(frozen=True)
class Convention:
    """Describes how `transformers` classes and config.json represent one of our tasks.

    Attributes:
        heads: the tasks whose heads this task can use; if empty, the task uses only its own head.
        labels: whether id2label lists the labels.
        problem_type: the value of the problem_type field, or "" if there is none.
        logits: whether each token has logits that can be compared with those in `transformers`.
        vectors: whether the task computes text vectors, so that the pooling must be known.
        overlap: the overlap between the windows of a long text, as a fraction of the sequence length.
        peft: a value of task_type for which peft adds no trained head to the adapters, or "" if there is none.
        generates: whether the model generates text according to generation_config.json.
    """

    heads: tuple[str, ...] = ()
    labels: bool = False
    problem_type: str = ""
    logits: bool = False
    vectors: bool = False
    overlap: float = 0.0
    peft: str = ""
    generates: bool = False


REGRESSION = "regression"  # predicts one number; in `transformers`, it is a classifier with one output
CONVENTIONS = {
    "causal": Convention(logits=True, generates=True, peft="CAUSAL_LM"),
    "seq2seq": Convention(logits=True, generates=True, peft="SEQ_2_SEQ_LM"),
    "chat": Convention(heads=("causal", "seq2seq"), logits=True),
    **dict.fromkeys(("span_corruption", "ul2", "infilling", "prefix_lm"), Convention(heads=("seq2seq",), logits=True)),
    "masked": Convention(logits=True),
    "tagging": Convention(labels=True, logits=True),
    "classification": Convention(labels=True, problem_type="single_label_classification"),
    REGRESSION: Convention(heads=("classification",), labels=True, problem_type="regression"),
    "span_qa": Convention(overlap=0.25),
    "contrastive": Convention(vectors=True, peft="FEATURE_EXTRACTION"),
}


def convention(objective: str) -> Convention:
    return CONVENTIONS.get(objective, Convention())


@dataclass(frozen=True)
class Head:
    """A `transformers` class with a head, such as BertForMaskedLM.

    Attributes:
        objective: the name of the task (objective.name) that uses this head.
        names: maps the module names of the head to our modules.
        settings: the ModelConfig settings that the head needs.
        objective_settings: other objective settings that the head needs, such as next_sentence.
    """

    objective: str
    names: Names = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
        name: the value of --family that selects this family.
        model_types: the values of model_type in config.json; exports write the first one.
        settings: the ModelConfig settings that all models of the family share.
        fields: the config.json fields that determine further settings or must have certain values.
        names: maps the module names of the body to our modules, or returns such a mapping for a ModelConfig.
        heads: the `transformers` classes by name, including the class without a head.
        kept: other modules that files may contain but that no head uses; their tensors are kept for the export.
        computed: returns the tensors that files contain although they can be computed from the settings.
        neutral: the config.json fields that do not affect what the model computes.
        spelling: the prefixes of tensor names.
        ignored: name patterns of buffers, which are not read.
        tie_default: the default value of tie_word_embeddings in `transformers`.
        adapt: functions that derive further settings from the settings and the tensors of a folder.
        free: the settings that `adapt` determines.
        unstored: our modules that files lack because the published model does not use them.
        same_class: maps alternative class names to the names in `heads`.
        own_tokenizer: whether AutoTokenizer in `transformers` 5 ignores the rules in tokenizer.json for this family.
        marks: tensor name patterns; a folder without model_type belongs to the family only if each pattern matches one
            of its tensors.
    """

    name: str
    model_types: tuple[str, ...]
    settings: Settings
    fields: tuple[Field, ...]
    names: Names | Callable[[ModelConfig], Names]
    heads: Mapping[str, Head]
    kept: Names = field(default_factory=dict)
    computed: Callable[[ModelConfig], dict[str, np.ndarray]] = lambda model: {}
    neutral: frozenset[str] = frozenset()
    spelling: Spelling = Spelling()
    ignored: tuple[str, ...] = ()
    tie_default: bool = False
    adapt: tuple[Callable[[Settings, Any], Settings], ...] = ()
    free: frozenset[str] = frozenset()
    unstored: tuple[str, ...] = ()
    same_class: Mapping[str, str] = field(default_factory=dict)
    own_tokenizer: bool = False
    marks: tuple[str, ...] = ()

    def names_of_other_heads(self, head: Head) -> Iterator[str]:
        """Yields name patterns of the tensors that other heads use."""
        for names in (self.kept, *(other.names for other in self.heads.values())):
            for module, target in names.items():
                if module not in head.names:
                    yield from pattern_of(module, target, self.spelling)
