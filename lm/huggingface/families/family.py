"""The declaration of a family of published models."""

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
    """Describes how one of our tasks appears in the classes of `transformers` and in config.json.

    Attributes:
        heads: the tasks whose heads serve this one; none for the task itself.
        labels: whether id2label lists the labels.
        problem_type: the value of the field with this name; "" if there is none.
        logits: whether the logits of each token can be compared.
        vectors: whether the result is the vector of a text, so that the pooling must be known.
        overlap: the overlap of the parts of a long text, as a share of the sequence length.
        peft: the value of task_type with which peft adds no trained head to the adapters, or "".
        generates: whether the model generates text, as generation_config.json says.
    """

    heads: tuple[str, ...] = ()
    labels: bool = False
    problem_type: str = ""
    logits: bool = False
    vectors: bool = False
    overlap: float = 0.0
    peft: str = ""
    generates: bool = False


REGRESSION = "regression"  # of one number; a classifier of `transformers` with one output
CONVENTIONS = {
    "causal": Convention(logits=True, generates=True, peft="CAUSAL_LM"),
    "seq2seq": Convention(logits=True, generates=True, peft="SEQ_2_SEQ_LM"),
    "chat": Convention(heads=("causal", "seq2seq")),
    **dict.fromkeys(("span_corruption", "ul2", "infilling", "prefix_lm"), Convention(heads=("seq2seq",))),
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
    """A class of `transformers` with a head, such as BertForMaskedLM.

    Attributes:
        objective: the task of ours (objective.name) with this head.
        names: the names of the head's modules.
        settings: the settings of ModelConfig that the head needs.
        objective_settings: other settings of the objective, such as next_sentence.
    """

    objective: str
    names: Names = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    objective_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
        name: the name for --family.
        model_types: the values of model_type in config.json; the first one is written.
        settings: the settings of ModelConfig that all models of the family share.
        fields: the fields of config.json that determine further settings or are refused.
        names: the names of the body's modules. A function gets the model's settings.
        heads: the classes of `transformers`, the one for the bare body included.
        kept: further modules that files may hold and no head uses; their tensors are kept for the export.
        computed: tensors that files hold although they follow from the settings.
        neutral: the fields of config.json that do not affect what the model computes.
        spelling: the prefixes of names.
        ignored: patterns of the names of buffers, which are not read.
        tie_default: the class default of tie_word_embeddings.
        adapt: functions that derive further settings from the settings and the tensors of a folder.
        free: settings that `adapt` determines.
        unstored: modules of ours that files lack because the model does not use them.
        same_class: further names of the classes in `heads`.
        own_tokenizer: whether AutoTokenizer of `transformers` 5 ignores the rules in tokenizer.json for these models.
        marks: patterns of names, all of which a folder without model_type must have to belong to the family.
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
        """Yields patterns of the names of tensors that other heads use."""
        for names in (self.kept, *(other.names for other in self.heads.values())):
            for module, target in names.items():
                if module not in head.names:
                    yield from pattern_of(module, target, self.spelling)
