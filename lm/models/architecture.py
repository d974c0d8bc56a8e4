"""The type of the entries of `lm.models.MODELS`: an architecture's builders and everything specific to its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.config import ModelConfig
from lm.models.heads import Head
from lm.models.protocol import Model

Builder = Callable[[ModelConfig, Head, str | None], Model]  # called with the config, the head and the platform
Refuse = Callable[[str, str], None]  # called with (setting, message); raises UserError

TENSOR_SIZES = ("vocab_size", "source_vocab_size")  # sizes that every architecture splits over the mesh axis `tensor`


@dataclass(frozen=True)
class Architecture:
    """A kind of model that can be selected with model.architecture.

    Attributes:
        families: the supported values of model.family, each with the function that builds the model.
        settings: the dotted names of the settings that this architecture reads but at least one other does not.
        derive: returns {dotted name: value} for the derived values that replace settings of 0.
        check: refuses settings that contradict each other.
        poolings: the default of model.pooling for some families; for the others, it is "last".
        alike_layers: whether all layers have parameters of the same shapes, so that they can be stacked.
        splits_layers: whether the mesh axis `tensor` splits the layers.
        whole_texts: whether the model has one vector per text, so that it supports only tasks on whole texts.
        word_vectors: whether the model consists of word vectors, so that it supports only tasks that train them.
        tensor_sizes: the settings that the mesh axis `tensor` must divide.
        fsdp_sizes: returns {description: size} for the sizes that the mesh axis `fsdp` must divide, besides d_model.
    """

    doc: str
    families: Mapping[str, Builder]
    settings: frozenset[str] = frozenset()
    derive: Callable[[Any], dict[str, Any]] = lambda config: {}
    check: Callable[[Any, Refuse], None] = lambda config, refuse: None
    poolings: Mapping[str, str] = field(default_factory=dict)
    alike_layers: bool = False
    splits_layers: bool = False
    whole_texts: bool = False
    word_vectors: bool = False
    tensor_sizes: tuple[str, ...] = TENSOR_SIZES
    fsdp_sizes: Callable[[ModelConfig], Mapping[str, int]] = lambda config: {}
