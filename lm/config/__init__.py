"""Every setting: its name, type, default, meaning, unit and check. There is no other place.

A file in `configs/` starts from `defaults()` (an ml_collections ConfigDict made of the dataclasses
below), changes what differs and returns it. The command line overrides single values with
`--config.model.num_layers=6`. `Config.from_dict` turns the result back into frozen dataclasses and
checks the whole before anything is built: unknown keys, types, ranges, and pairs of settings that
cannot work together. Checks that need devices or a tokenizer are made by those who know them
(`lm/parallel/mesh.py`, `lm/runs/prepare.py`) and are told in the same way, as a UserError.
"""

from lm.config.data import CleaningConfig, DataConfig, PairsConfig, SourceConfig, TokenizerConfig
from lm.config.experiment import Config, defaults, source
from lm.config.model import ModelConfig, ObjectiveConfig
from lm.config.training import (
    CheckpointConfig,
    EvalConfig,
    GenerationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "CleaningConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GenerationConfig",
    "LogConfig",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PairsConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainConfig",
    "defaults",
    "source",
]
