"""Every setting: its name, type, default, meaning and unit, declared here and nowhere else.

A file in `configs/` starts from `defaults()`, an ml_collections ConfigDict made of the dataclasses below, changes some
settings and returns it. The command line overrides single values with `--config.model.num_layers=6`. `Config.from_dict`
turns the result back into frozen dataclasses and raises UserError, before anything is built, for unknown keys, wrong
types, values out of range and combinations that cannot work. Settings that depend on the devices and the tokenizer are
checked in the same way by `lm/parallel/mesh.py` and `lm/runs/prepare.py`.
"""

# ruff: noqa: F401  (these names are imported from here)

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
