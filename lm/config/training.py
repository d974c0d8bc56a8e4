"""Settings of training, from the optimizer to the evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lm.config.schema import entries, option, section


@dataclass(frozen=True)
class OptimizerConfig:
    """From gradients to updates."""

    name: str = option("adamw", "Optimizer.", registry="lm.training.optimizers.OPTIMIZERS")
    learning_rate: float = option(1e-3, "Learning rate at the peak.", minimum=0.0)
    schedule: str = option("cosine", "Learning rate after the warm-up.", registry="lm.training.schedules.SCHEDULES")
    warmup_steps: int = option(100, "Steps of linear warm-up from 0.", minimum=0)
    decay_steps: int = option(
        0,
        "Step at which linear and cosine reach their end, 0 for train.num_steps; for warmup_stable_decay the number "
        "of steps of the final decay, 0 for a fifth of train.num_steps.",
        minimum=0,
    )
    final_fraction: float = option(
        0.1, "Learning rate at the end, as a fraction of the peak.", minimum=0.0, maximum=1.0
    )
    weight_decay: float = option(
        0.1, "Decoupled weight decay of matrices; never of biases, norms or positions.", minimum=0.0
    )
    b1: float = option(
        0.9,
        "Decay of the first moment; the momentum of sgd and muon; adafactor ignores it.",
        minimum=0.0,
        maximum=0.9999,
    )
    b2: float = option(
        0.95, "Decay of the second moment; the upper bound of the decay for adafactor.", minimum=0.0, maximum=0.99999
    )
    epsilon: float = option(1e-8, "Added to the divisor of an update; adafactor, lion and sgd ignore it.", minimum=0.0)
    clip_norm: float = option(1.0, "Clip the global gradient norm to this; 0 for no clipping.", minimum=0.0)
    layer_decay: float = option(
        1.0,
        "Learning rate of each layer as a fraction of that of the layer above it; highest for the head, lowest for the "
        "embeddings (Clark 2020: 0.8 to 0.9 for fine-tuning).",
        minimum=0.0,
        maximum=1.0,
    )
    freeze_layers: int = option(
        0, "Do not train the embeddings and this number of first blocks; 0 to train everything.", minimum=0
    )
    freeze: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "Do not train parameters whose names, as printed at the start of a run, contain one of these."
        },
    )
    ema_decay: float = option(
        0.0,
        "Keep a moving average of the parameters with this decay, and evaluate it; 0 for none.",
        minimum=0.0,
        maximum=0.99999,
    )

    @property
    def schedule_entry(self) -> Any:
        """The entry of `lm.training.schedules.SCHEDULES` that `schedule` names."""
        return entries("lm.training.schedules.SCHEDULES")[self.schedule]


@dataclass(frozen=True)
class TrainConfig:
    num_steps: int = option(1000, "Total number of optimizer steps.", minimum=1)
    batch_size: int = option(
        32, "Rows per step, on all devices and in all microbatches together.", minimum=1, affects="batches"
    )
    accumulation: int = option(
        1,
        "Microbatches per step: more of them need less memory; the result is the same.",
        minimum=1,
        affects="nothing",
    )
    patience: int = option(
        0,
        "Stop when checkpoint.best_metric did not improve for this number of evaluations in a row; 0: never.",
        minimum=0,
        affects="nothing",
    )
    max_bad_steps: int = option(
        10,
        "Stop after this number of steps in a row whose loss or gradient was not finite (each is skipped).",
        minimum=1,
        affects="nothing",
    )


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices on each axis of the mesh; one of them may be -1, for all the others."""

    data: int = option(-1, "Copies of the model, each with its part of the batch.", minimum=-1)
    fsdp: int = option(1, "Parameters and batch both split over these.", minimum=-1)
    tensor: int = option(1, "Heads, MLP and vocabulary split over these.", minimum=-1)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = option(
        500, "Save a checkpoint every this many steps (and at the end, and on SIGTERM).", minimum=1
    )
    keep_latest: int = option(2, "Latest checkpoints kept.", minimum=1)
    keep_best: int = option(1, "Best checkpoints kept, by best_metric.", minimum=0)
    best_metric: str = option(
        "valid/loss",
        "The best checkpoint has the lowest value of this metric, or the highest of a score such as valid/bleu.",
    )

    @property
    def highest_is_best(self) -> bool:
        """Whether best_metric is a score, not a loss or an error."""
        return bool(entries("lm.evaluation.METRICS")[self.best_metric.rpartition("/")[2]].higher_is_better)


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = option(10, "Write a line to metrics.jsonl every this many steps.", minimum=1)
    tensorboard: bool = option(True, "Write TensorBoard events into the run directory.")
    wandb_project: str = option("", "Also log to this Weights & Biases project (pip install wandb); empty for none.")


@dataclass(frozen=True)
class GenerationConfig:
    """How the outputs of an encoder-decoder are generated and scored."""

    metrics: tuple[str, ...] = option(
        (), "Scores of outputs against references; empty for none.", registry="lm.evaluation.text_metrics.TEXT_METRICS"
    )
    num_beams: int = option(1, "Hypotheses kept by beam search; 1 is greedy.", minimum=1, maximum=1000)
    training_beams: int = option(1, "The same for the evaluations during training.", minimum=1, maximum=1000)
    penalty: str = option(
        "power",
        "Scores are divided by length^a (power) or ((5 + length) / 6)^a (gnmt, Wu 2016).",
        choices=("power", "gnmt"),
    )
    length_penalty: float = option(1.0, "The a above: 0 for none, more for longer outputs.", minimum=-8.0, maximum=8.0)
    exact: bool = option(
        True,
        "Search until no hypothesis can win any more; False ends when none could win at the next token, as in Hugging "
        "Face by default: faster, and rarely a different output.",
    )
    max_new_tokens: int = option(0, "Longest output, end token included; 0 for data.sequence_length.", minimum=0)
    min_new_tokens: int = option(0, "No end token before this many tokens.", minimum=0)
    no_repeat_ngram: int = option(
        0, "No n-gram of this many tokens occurs twice in an output; 0: no such rule.", minimum=0
    )
    batch_size: int = option(64, "Sources at a time, of similar length.", minimum=1)
    max_examples: int = option(
        0, "Outputs scored during training, 0 for all; the table at the end and eval.py score all.", minimum=0
    )
    bleu_tokenize: str = option(
        "13a", "sacrebleu's tokenisation: 13a, intl, zh, char, none.", choices=("13a", "intl", "zh", "char", "none")
    )


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(500, "Evaluate every this many steps, and at the end.", minimum=1)
    batch_size: int = option(0, "Rows at a time; 0 for train.batch_size.", minimum=0)
    max_rows: int = option(
        0, "Rows scored during training, 0 for all; the table at the end and eval.py score all.", minimum=0
    )
    stride: int = option(0, "Tokens by which windows advance; 0 for sequence_length, less for overlap.", minimum=0)
    bootstrap: int = option(
        0, "Resamples for 95 % confidence intervals of a labelled task's metrics in the table; 0: none.", minimum=0
    )
    prompts: tuple[str, ...] = field(
        default=("",), metadata={"doc": "Continued as sample text at each evaluation; empty tuple for none."}
    )
    compare_with_xz: bool = option(False, "Show in the final table how well `xz -9` compresses the same text.")
    sample_tokens: int = option(64, "Length of sample text, in tokens.", minimum=1)
    generation: GenerationConfig = section(GenerationConfig)
