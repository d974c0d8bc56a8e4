"""The whole of an experiment: its sections, derived values, and the way from and to plain dicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from lm.config.checks import check, check_family, check_unread, unread
from lm.config.data import DataConfig, SourceConfig
from lm.config.model import ModelConfig, ObjectiveConfig
from lm.config.schema import build, entries, option, section
from lm.config.training import CheckpointConfig, EvalConfig, LogConfig, MeshConfig, OptimizerConfig, TrainConfig
from lm.errors import UserError


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = option(0, "Of the initial weights, the data order, dropout and sampling.", minimum=0, affects="batches")
    init_from: str = option(
        "",
        "Begin with the parameters and the tokenizer of this run directory (its best checkpoint); what does not match "
        "is listed. Empty for random parameters.",
        affects="updates",
    )
    data: DataConfig = section(DataConfig, affects="batches")
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig, affects="updates")
    optimizer: OptimizerConfig = section(OptimizerConfig, affects="updates")
    train: TrainConfig = section(TrainConfig, affects="updates")
    mesh: MeshConfig = section(MeshConfig, affects="nothing")
    checkpoint: CheckpointConfig = section(CheckpointConfig, affects="nothing")
    log: LogConfig = section(LogConfig, affects="nothing")
    eval: EvalConfig = section(EvalConfig, affects="nothing")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, reset_unread: bool = False) -> Config:
        """Builds the config, fills in derived values and checks the whole. Raises UserError at the first fault.

        With `reset_unread` a setting that the task does not read gets its default instead of being refused: for
        configs that were written when such settings were ignored.
        """
        given = build(cls, values)
        task = entries("lm.tasks.TASKS")[given.objective.name]
        if reset_unread:
            given = replace_settings(given, dict(unread(task)))
        config = _resolve(given, task)
        check_family(config, task)
        check_unread(given, config, task)
        check(config, task)
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        return cls.from_dict(json.loads(text))


def replace_settings(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a config with other values of some settings, by dotted name. Nothing is checked."""
    for setting, value in values.items():
        section, _, rest = setting.partition(".")
        new = replace_settings(getattr(config, section), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{section: new})
    return config


DEFAULTS = Config()


def defaults() -> ml_collections.ConfigDict:
    """What a file in configs/ starts from: every setting at its default."""
    return ml_collections.ConfigDict(Config().to_dict(), convert_dict=True)


def source(**values: Any) -> ml_collections.ConfigDict:
    """One source for `config.data.train.NAME = source(kind=..., path=...)`."""
    return ml_collections.ConfigDict(dataclasses.asdict(SourceConfig(**values)))


def _resolve(config: Config, task: Any) -> Config:
    """Fills in what stands for "derived", except for what the tokenizer (vocab_size) and the data (labels) give."""
    config = task.resolve(config)
    data, model, steps = config.data, config.model, config.train.num_steps
    optimizer, generation = config.optimizer, config.eval.generation
    model = dataclasses.replace(model, pooling=model.pooling or ("first" if model.family == "encoder" else "last"))
    if model.family == "encoder_decoder":
        data = dataclasses.replace(data, source_length=data.source_length or data.sequence_length)
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
