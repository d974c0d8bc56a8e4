"""Declares every setting: its name, type, default, meaning and unit.

A file in `configs/` calls `defaults()` to get an ml_collections ConfigDict with the fields of the dataclasses
imported below, changes some settings and returns the ConfigDict. Individual settings can be overridden on the command
line, as in `--config.model.num_layers=6`. `Config.from_dict` then converts the ConfigDict into frozen dataclasses and
raises UserError, before anything is built, for unknown keys, wrong types, out-of-range values and incompatible
settings. Settings that depend on the devices or on the tokenizer are checked later, in `lm/parallel/mesh.py` and
`lm/runs/prepare.py`.
"""

# ruff: noqa: F401  (re-exported)

from lm.config.data import CleaningConfig, DataConfig, PairsConfig, SourceConfig, TokenizerConfig
from lm.config.experiment import Config, defaults, source
from lm.config.model import ModelConfig
from lm.config.objective import ObjectiveConfig
from lm.config.training import (
    CheckpointConfig,
    EvalConfig,
    GenerationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
)
