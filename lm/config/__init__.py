"""Every setting: its name, type, default, meaning and unit, declared here and nowhere else.

A file in `configs/` starts from `defaults()` (an ml_collections ConfigDict made of the dataclasses
below), changes what differs and returns it. The command line overrides single values with
`--config.model.num_layers=6`. `Config.from_dict` turns the result back into frozen dataclasses and
raises UserError, before anything is built, for unknown keys, wrong types, values out of range and
combinations that cannot work. `lm/parallel/mesh.py` and `lm/runs/prepare.py` check in the same way
what depends on the devices and the tokenizer.
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
