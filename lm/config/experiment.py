"""The config of an experiment: its sections, derived values, and conversion to and from plain dicts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import ml_collections

from lm.config.checks import MODELS, TASKS, check, check_schedule, check_steps, default_pooling, unread
from lm.config.data import DataConfig, SourceConfig
from lm.config.model import ModelConfig
from lm.config.objective import ObjectiveConfig
from lm.config.schema import build, entries, option, section
from lm.config.stop_words import with_words
from lm.config.training import CheckpointConfig, EvalConfig, LogConfig, MeshConfig, OptimizerConfig, TrainConfig

LARGEST_SEED = 2**32 - 2  # JAX seeds have 32 bits, and dropout uses the next seed


@dataclass(frozen=True)
class Config:
    seed: int = option(0, minimum=0, maximum=LARGEST_SEED, affects="batches")
    """Seed for initial weights, data order, dropout and sampling."""
    init_from: str = option("", affects="updates")
    """Run directory from which the tokenizer and the initial parameters (of the best checkpoint) are loaded. Parameters
    that exist only in that run or only in the new model are listed. If empty, all parameters are initialised
    randomly."""
    data: DataConfig = section(DataConfig, affects="batches")
    model: ModelConfig = section(ModelConfig, affects="function")
    objective: ObjectiveConfig = section(ObjectiveConfig, affects="updates")
    optimizer: OptimizerConfig = section(OptimizerConfig, affects="updates")
    train: TrainConfig = section(TrainConfig, affects="updates")
    mesh: MeshConfig = section(MeshConfig, affects="nothing")
    checkpoint: CheckpointConfig = section(CheckpointConfig, affects="nothing")
    log: LogConfig = section(LogConfig, affects="nothing")
    eval: EvalConfig = section(EvalConfig, affects="nothing")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, reset_unread: bool = False) -> Config:
        """Builds a config and fills in the derived values. Raises UserError for the first invalid setting.

        If `reset_unread` is true, as for the config of an existing run, settings that the task or the architecture does
        not read are reset to their defaults, and train.num_epochs and the number of steps derived from it may both be
        set.
        """
        given = build(cls, values)
        if not reset_unread:
            check_steps(given.train)
        task = entries(TASKS)[given.objective.name]
        if reset_unread:
            unread_settings = unread(entries(TASKS), task.name) + unread(entries(MODELS), given.model.architecture)
            given = replace_settings(given, dict(unread_settings))
        config = _resolve(given, task)
        check(given, config, task)
        return config

    def with_num_steps(self, num_steps: int) -> Config:
        """Returns a copy with this many steps and a matching schedule. Raises UserError if that schedule is invalid."""
        config = _with_schedule(replace_settings(self, {"train.num_steps": num_steps}))
        check_schedule(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def replace_settings(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of the config with new values, given as {dotted name: value}. The values are not checked."""
    for setting, value in values.items():
        section, _, rest = setting.partition(".")
        new = replace_settings(getattr(config, section), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{section: new})
    return config


DEFAULTS = Config()
DEFAULT_STEPS, DEFAULT_WARMUP = 1000, 100  # used if train.num_epochs is not set


def defaults() -> ml_collections.ConfigDict:
    """Returns a config with every setting at its default. Each file in configs/ starts from this config."""
    return ml_collections.ConfigDict(Config().to_dict(), convert_dict=True)


def source(**values: Any) -> ml_collections.ConfigDict:
    """Builds a data source for use as `config.data.train.NAME = source(kind=..., path=...)`."""
    return ml_collections.ConfigDict(dataclasses.asdict(SourceConfig(**values)))


def _resolve(config: Config, task: Any) -> Config:
    """Fills in all derived values except those that depend on the tokenizer (vocab_size) or the data (labels)."""
    config = _with_schedule(task.resolve(config))
    config = replace_settings(config, {"data.cleaning.stop_words": with_words(config.data.cleaning.stop_words)})
    data, model = config.data, config.model
    two_sided = model.family == "encoder_decoder"
    source_length = data.source_length or data.sequence_length * two_sided
    derived = {
        "data.source_length": source_length,
        "model.num_encoder_layers": model.num_layers * two_sided,
        "model.max_length": max(data.sequence_length, source_length),
        "model.pooling": default_pooling(model),
        "eval.batch_size": config.train.batch_size,
        "eval.stride": data.sequence_length,
        "eval.generation.max_new_tokens": data.sequence_length,
        **entries(MODELS)[model.architecture].derive(config),
    }
    return replace_settings(config, {name: each for name, each in derived.items() if not attrgetter(name)(config)})


def _with_schedule(config: Config) -> Config:
    """Fills in the number of steps, the warm-up and the decay, unless they depend on data not yet read.

    Models that are not trained by gradient descent have no steps.
    """
    if entries(MODELS)[config.model.architecture].fit is not None:
        return config
    optimizer, epochs, steps = config.optimizer, config.train.num_epochs, config.train.num_steps
    if steps < 1:
        if epochs:
            return replace_settings(config, {"train.num_steps": -1})
        steps = DEFAULT_STEPS
    values: dict[str, Any] = {"train.num_steps": steps}
    if optimizer.warmup_steps < 0:
        values["optimizer.warmup_steps"] = steps // 10 if epochs else DEFAULT_WARMUP
    if not optimizer.decay_steps:
        values["optimizer.decay_steps"] = max(1, steps // 5) if optimizer.schedule_entry.decays_last else steps
    return replace_settings(config, values)
