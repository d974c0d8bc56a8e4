"""The whole of an experiment: its sections, derived values, and the way from and to plain dicts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from lm.config.checks import check_pairs
from lm.config.data import DataConfig, SourceConfig
from lm.config.model import ModelConfig, ObjectiveConfig
from lm.config.schema import build, option, section
from lm.config.training import CheckpointConfig, EvalConfig, LogConfig, MeshConfig, OptimizerConfig, TrainConfig
from lm.errors import UserError

# What the model has to compute for an objective; for all others the next token.
HEADS = {
    "masked": "masked",
    "classification": "classes",
    "regression": "classes",
    "tagging": "classes",
    "span_qa": "span",
    "contrastive": "embedding",
}


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = option(0, "Of the initial weights, the data order, dropout and sampling.", minimum=0)
    init_from: str = option(
        "",
        "Begin with the parameters and the tokenizer of this run directory (its best checkpoint); what does not match "
        "is listed. Empty for random parameters.",
    )
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    train: TrainConfig = section(TrainConfig)
    mesh: MeshConfig = section(MeshConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
    eval: EvalConfig = section(EvalConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Builds, resolves derived values and checks. Raises UserError at the first thing wrong."""
        config = build(cls, values)
        config = _resolve(config)
        check_pairs(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        return cls.from_dict(json.loads(text))


def defaults() -> ml_collections.ConfigDict:
    """What a file in configs/ starts from: every setting at its default."""
    return ml_collections.ConfigDict(Config().to_dict(), convert_dict=True)


def source(**values: Any) -> ml_collections.ConfigDict:
    """One source for `config.data.train.NAME = source(kind=..., path=...)`."""
    return ml_collections.ConfigDict(dataclasses.asdict(SourceConfig(**values)))


def _max_hidden(config: Config) -> int:
    """A little more than the share of a row that is hidden; rows are packed so that it is never more.

    How many tokens whole words have is not known before they are drawn, so there it is any number.
    """
    objective, length = config.objective, config.data.sequence_length
    if objective.name != "masked" or objective.whole_words:
        return 0
    return min(length, 8 * math.ceil(1.1 * objective.noise_density * length / 8))


def _resolve(config: Config) -> Config:
    """Fills in what stands for "derived", save what the tokenizer (vocab_size) and the data (labels) give."""
    data, model, steps = config.data, config.model, config.train.num_steps
    optimizer, generation = config.optimizer, config.eval.generation
    head = HEADS.get(config.objective.name, "tokens")
    if model.head not in ("tokens", head):
        raise UserError(
            f"config.model.head: {model.head!r} does not fit objective.name={config.objective.name}; leave it."
        )
    pooling = model.pooling or ("first" if model.family == "encoder" else "last")
    pooling = "none" if config.objective.name == "tagging" else pooling
    classes = 1 if config.objective.name == "regression" else len(data.labels)
    model = dataclasses.replace(
        model,
        head=head,
        pooling=pooling,
        num_classes=model.num_classes or (classes if head == "classes" else 0),
        pair_head=config.objective.next_sentence,
        max_hidden=_max_hidden(config),
    )
    if config.objective.name == "contrastive":  # the same stack reads both texts
        data = dataclasses.replace(data, source_length=data.sequence_length)
    if model.family == "encoder_decoder":
        # With a head of its own both sides read the same text.
        own = data.source_length if head == "tokens" else 0
        data = dataclasses.replace(data, source_length=own or data.sequence_length)
        model = dataclasses.replace(model, num_encoder_layers=model.num_encoder_layers or model.num_layers)
    if model.head_dim == 0:
        if model.d_model % model.num_heads:
            raise UserError(
                f"config.model: num_heads={model.num_heads} does not divide d_model={model.d_model}; "
                "change one of them or set head_dim."
            )
        model = dataclasses.replace(model, head_dim=model.d_model // model.num_heads)
    model = dataclasses.replace(
        model,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        d_ff=model.d_ff or 4 * model.d_model,
        max_length=model.max_length or max(data.sequence_length, data.source_length),
    )
    if optimizer.decay_steps == 0:
        decay_steps = max(1, steps // 5) if optimizer.schedule_entry.decays_last else steps
        optimizer = dataclasses.replace(optimizer, decay_steps=decay_steps)
    return dataclasses.replace(
        config,
        data=data,
        model=model,
        optimizer=optimizer,
        eval=dataclasses.replace(
            config.eval,
            batch_size=config.eval.batch_size or config.train.batch_size,
            stride=config.eval.stride or data.sequence_length,
            generation=dataclasses.replace(
                generation, max_new_tokens=generation.max_new_tokens or data.sequence_length
            ),
        ),
    )
