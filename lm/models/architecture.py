"""The type of the entries in `lm.models.MODELS`: an architecture's builders, settings and capabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lm.config import ModelConfig, OptimizerConfig, TrainConfig
from lm.config.heads import HeadSettings
from lm.models.heads import Head
from lm.models.protocol import Model

Builder = Callable[[ModelConfig, Head, str | None], Model]  # called with the config, the head and the platform
Refuse = Callable[[str, str], None]  # called with (setting, message); raises UserError

FitReport = Callable[[int, int], None]  # called with (number done, total)

TENSOR_SIZES = ("vocab_size", "source_vocab_size")  # the default of `Architecture.tensor_sizes`

TABLE_SETTINGS = "d_model init_std embedding_std embedding_from dtype"
LAYER_SETTINGS = """
embedding_width num_encoder_layers source_vocab_size norm norm_epsilon activation use_bias share_embeddings
shift_decoder tie_embeddings scale_logits logits_softcap dropout
"""
OTHER_SETTINGS = """
init_from data.num_workers data.prefetch objective.label_smoothing objective.label_smoothing_over objective.z_loss
objective.logit_chunks checkpoint.every_steps log.every_steps eval.every_steps eval.max_rows
"""
# The dotted names of the settings that are read by all architectures trained by gradient descent, and by no others.
TRAINED = frozenset(
    [
        *(f"model.{name}" for name in TABLE_SETTINGS.split()),
        *(f"optimizer.{each.name}" for each in dataclasses.fields(OptimizerConfig)),
        *(f"train.{each.name}" for each in dataclasses.fields(TrainConfig)),
        *OTHER_SETTINGS.split(),
    ]
)
# The dotted names of the settings that are read by all of these architectures except word vectors.
LAYERED = frozenset(
    [
        *(f"model.{name}" for name in LAYER_SETTINGS.split()),
        *(f"model.{each.name}" for each in dataclasses.fields(HeadSettings)),
    ]
)


@dataclass(frozen=True)
class Fitted:
    """A model that was fitted without gradients.

    Attributes:
        settings: {dotted name: value} for the settings that the data determines, such as the sizes of tables.
        params: the parameters, as NumPy arrays.
        notes: lines to print.
        record: JSON values, other than parameters, that are estimated from the data and stored in the checkpoint.
    """

    settings: Mapping[str, Any]
    params: dict[str, Any]
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


class Fit(Protocol):
    """Fits a model to token stores without gradients."""

    def __call__(
        self, config: Any, stores: Mapping[str, Any], tokenizer: Any, directory: Path, report: FitReport | None = None
    ) -> Fitted:
        """Returns the fitted model. Raises UserError if the model cannot be fitted to this data with these settings.

        Args:
            config: the `Config` of the experiment, with model.vocab_size resolved.
            stores: maps each data source of the training split to its `TokenStore`.
            tokenizer: the tokenizer of the stores.
            directory: a directory for temporary files.
        """


@dataclass(frozen=True)
class Architecture:
    """A kind of model that can be selected with model.architecture.

    Attributes:
        families: the supported values of model.family, each with the function that builds the model.
        settings: the dotted names of the settings that this architecture reads but at least one other does not. The
            settings in `TRAINED` are added if the architecture is trained by gradient descent. The settings in
            `LAYERED` are added as well, unless `word_vectors` is true.
        derive: returns {dotted name: derived value}; each value replaces a setting that is 0.
        check: rejects settings that contradict each other.
        poolings: the default value of model.pooling for some families; for all others, the default is "last".
        alike_layers: whether all layers have parameters of the same shapes, so that they can be stacked.
        splits_layers: whether the mesh axis `tensor` splits the layers.
        int8: whether decoding supports 8-bit projections (`lm.models.int8`).
        rewinds: whether a row of a cache can return to an earlier position, as in speculative decoding.
        whole_texts: whether the model computes one vector per text, so that it supports only tasks on whole texts.
        word_vectors: whether the model consists of word vectors, so that it supports only tasks that train them.
        tensor_sizes: the settings that must be divisible by the size of the mesh axis `tensor`.
        fsdp_sizes: returns {description: size} for the sizes that, like d_model, must be divisible by the size of the
            mesh axis `fsdp`.
        fit: fits the model without gradients; None if the model is trained by gradient descent. Fitting requires a
            task whose rows are windows of a text.
        check_fit: rejects settings with which a model can be used but not fitted.
    """

    doc: str
    families: Mapping[str, Builder]
    settings: frozenset[str] = frozenset()
    derive: Callable[[Any], dict[str, Any]] = lambda config: {}
    check: Callable[[Any, Refuse], None] = lambda config, refuse: None
    poolings: Mapping[str, str] = field(default_factory=dict)
    alike_layers: bool = False
    splits_layers: bool = False
    int8: bool = False
    rewinds: bool = False
    whole_texts: bool = False
    word_vectors: bool = False
    tensor_sizes: tuple[str, ...] = TENSOR_SIZES
    fsdp_sizes: Callable[[ModelConfig], Mapping[str, int]] = lambda config: {}
    fit: Fit | None = None
    check_fit: Callable[[Any, Refuse], None] = lambda config, refuse: None

    def __post_init__(self) -> None:
        if self.fit is None:
            layered = frozenset() if self.word_vectors else LAYERED
            object.__setattr__(self, "settings", self.settings | TRAINED | layered)
