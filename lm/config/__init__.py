"""Every setting: its name, type, default, meaning and unit, declared here and nowhere else.

A file in `configs/` starts from `defaults()`, an ml_collections ConfigDict built from the dataclasses below, changes
some settings and returns it. The command line overrides single values with `--config.model.num_layers=6`.
`Config.from_dict` converts the result into frozen dataclasses and raises UserError, before anything is built, for
unknown keys, wrong types, out-of-range values and incompatible settings. `lm/parallel/mesh.py` and
`lm/runs/prepare.py` likewise check the settings that depend on the devices and on the tokenizer.
"""

# ruff: noqa: F401  (re-exported)

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
