"""Training settings: optimizer, steps, mesh, checkpoints, logs, evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lm.config.schema import entries, option, section


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients are turned into updates."""

    name: str = option("adamw", "Optimizer.", registry="lm.training.optimizers.OPTIMIZERS")
    learning_rate: float = option(1e-3, "Peak learning rate.", minimum=0.0)
    schedule: str = option("cosine", "Schedule after the warm-up.", registry="lm.training.schedules.SCHEDULES")
    warmup_steps: int = option(
        -1,
        "Number of steps of linear warm-up from 0; -1 for 100 or, with train.num_epochs, a tenth of the steps.",
        minimum=-1,
    )
    decay_steps: int = option(
        0,
        "linear, cosine: step at which the decay ends; 0 for train.num_steps. warmup_stable_decay: length of the final "
        "decay, in steps; 0 for a fifth of train.num_steps.",
        minimum=0,
        read_by="schedule",
    )
    final_fraction: float = option(
        0.1, "Final learning rate, as a fraction of the peak.", minimum=0.0, maximum=1.0, read_by="schedule"
    )
    weight_decay: float = option(
        0.1, "Decoupled weight decay for matrices; biases, norms and position parameters are not decayed.", minimum=0.0
    )
    b1: float = option(
        0.9,
        "Decay rate of the first moment; for sgd and muon, the momentum; ignored by adafactor.",
        minimum=0.0,
        maximum=0.9999,
        read_by="name",
    )
    b2: float = option(
        0.95,
        "Decay rate of the second moment; for adafactor, its upper bound.",
        minimum=0.0,
        maximum=0.99999,
        read_by="name",
    )
    epsilon: float = option(
        1e-8,
        "Constant added to the denominator of updates; ignored by adafactor, lion and sgd.",
        minimum=0.0,
        read_by="name",
    )
    clip_norm: float = option(1.0, "Clip gradients to this global norm; 0 for no clipping.", minimum=0.0)
    layer_decay: float = option(
        1.0,
        "Ratio of the learning rate of each layer to that of the layer above; the head has the full rate and the "
        "embeddings the lowest (Clark 2020: 0.8 to 0.9 for fine-tuning).",
        minimum=0.0,
        maximum=1.0,
    )
    freeze_layers: int = option(
        0, "Freeze the embeddings and this many blocks, from the bottom up; 0 to freeze neither.", minimum=0
    )
    freeze: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "Freeze parameters whose names, as printed at the start of a run, contain one of these strings."
        },
    )
    ema_decay: float = option(
        0.0,
        "Decay rate of a moving average of the parameters, which evaluation then uses; 0 for none.",
        minimum=0.0,
        maximum=0.99999,
    )

    @property
    def schedule_entry(self) -> Any:
        """The entry of `lm.training.schedules.SCHEDULES` named by `schedule`."""
        return entries("lm.training.schedules.SCHEDULES")[self.schedule]


@dataclass(frozen=True)
class TrainConfig:
    num_steps: int = option(
        -1, "Total number of optimizer steps; -1 for the number that num_epochs gives or, without it, 1000.", minimum=-1
    )
    num_epochs: float = option(
        0.0,
        "Length of the training in passes over the training data, which may be fractions, in place of num_steps; 0 to "
        "use num_steps. Several data sources count as one, in which weights determine the share of each.",
        minimum=0.0,
        maximum=10_000.0,
    )
    batch_size: int = option(32, "Rows per step, over all devices and microbatches.", minimum=1, affects="batches")
    accumulation: int = option(
        1,
        "Number of microbatches per step; more of them need less memory and give the same result.",
        minimum=1,
        affects="nothing",
    )
    patience: int = option(
        0,
        "Stop when checkpoint.best_metric has not improved for this many evaluations in a row; 0 to never stop early.",
        minimum=0,
        affects="nothing",
    )
    max_bad_steps: int = option(
        10,
        "Stop after this many consecutive steps with a non-finite loss or gradient, which leave the state unchanged.",
        minimum=1,
        affects="nothing",
    )


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices on each mesh axis; one axis may be -1, for all remaining devices."""

    data: int = option(-1, "Number of replicas of the model, each with its share of the batch.", minimum=-1)
    fsdp: int = option(1, "Number of devices over which both parameters and batch are split.", minimum=-1)
    tensor: int = option(1, "Number of devices over which heads, MLP and vocabulary are split.", minimum=-1)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = option(500, "Steps between checkpoints; one is also saved at the end and on SIGTERM.", minimum=1)
    keep_latest: int = option(2, "Number of latest checkpoints to keep.", minimum=1)
    keep_best: int = option(1, "Number of best checkpoints to keep, ranked by best_metric.", minimum=0)
    best_metric: str = option(
        "valid/loss",
        "Metric that ranks checkpoints; the lowest value is best or, for a score such as valid/bleu, the highest.",
    )

    @property
    def highest_is_best(self) -> bool:
        """Whether best_metric is a score rather than a loss or an error."""
        return bool(entries("lm.evaluation.METRICS")[self.best_metric.rpartition("/")[2]].higher_is_better)


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = option(10, "Steps between lines in metrics.jsonl.", minimum=1)
    tensorboard: bool = option(True, "Write TensorBoard events into the run directory.")
    wandb_project: str = option("", "Also log to this Weights & Biases project (needs wandb); empty for none.")


@dataclass(frozen=True)
class GenerationConfig:
    """How outputs of an encoder-decoder are generated and scored."""

    metrics: tuple[str, ...] = option(
        (),
        "Metrics that compare outputs with references; empty for none.",
        registry="lm.evaluation.text_metrics.TEXT_METRICS",
    )
    num_beams: int = option(1, "Beam size; 1 is greedy search.", minimum=1, maximum=1000)
    training_beams: int = option(
        1, "Beam size for evaluations during training.", minimum=1, maximum=1000, needs=("metrics",)
    )
    penalty: str = option(
        "power",
        "Length normalisation: divide scores by length^a (power) or ((5 + length) / 6)^a (gnmt, Wu 2016).",
        choices=("power", "gnmt"),
    )
    length_penalty: float = option(
        1.0,
        "Exponent a in `penalty`: 0 for no normalisation; larger values favour longer outputs.",
        minimum=-8.0,
        maximum=8.0,
    )
    exact: bool = option(
        True,
        "Search until no unfinished hypothesis can win. If False, stop as soon as none could win by ending at its next "
        "token; this is Hugging Face's default, which is faster and rarely changes the output.",
    )
    max_new_tokens: int = option(
        0, "Maximum output length in tokens, including EOS; 0 for data.sequence_length.", minimum=0
    )
    min_new_tokens: int = option(0, "Minimum number of tokens before the EOS token.", minimum=0)
    no_repeat_ngram: int = option(
        0, "Never repeat an n-gram of this many tokens within an output; 0 for no limit.", minimum=0
    )
    batch_size: int = option(64, "Number of sources (of similar length) to decode at a time.", minimum=1)
    max_examples: int = option(
        0,
        "Number of outputs to score during training; 0 for all. The final table and eval.py score all.",
        minimum=0,
        needs=("metrics",),
    )
    bleu_tokenize: str = option(
        "auto",
        "sacrebleu's tokenisation for BLEU. auto follows the script of the references: zh for Chinese, ja-mecab and "
        "ko-mecab if they are installed, char for other scripts without spaces, 13a for the rest. none: the text is "
        "tokenised already.",
        choices=("auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
        needs=("metrics",),
    )


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(500, "Steps between evaluations; there is also one at the end.", minimum=1)
    batch_size: int = option(0, "Rows per batch; 0 for train.batch_size.", minimum=0)
    max_rows: int = option(
        0, "Number of rows to score during training; 0 for all. The final table and eval.py score all.", minimum=0
    )
    stride: int = option(0, "Tokens between window starts; 0 for sequence_length (no overlap).", minimum=0)
    bootstrap: int = option(
        0,
        "Number of bootstrap resamples for 95 % confidence intervals of the metrics of labelled tasks; 0 for none.",
        minimum=0,
    )
    tag_scheme: str = option(
        "auto",
        "tagging: scheme of the tags, which determines the entities; auto infers it from the tags of train and valid, "
        "none counts no entities. BIO is IOB2, and BIOES is IOBES.",
        choices=("auto", "none", "IOB1", "IOB2", "BIO", "IOE1", "IOE2", "IOBES", "BIOES", "BILOU", "BMES"),
    )
    answer_rules: str = option(
        "auto",
        "span_qa: how answers are compared: squad (words), cmrc (Chinese), or characters (for other scripts without "
        "spaces, such as Japanese); auto follows the script of most of the text of a data source.",
        choices=("auto", "squad", "cmrc", "characters"),
    )
    prompts: tuple[str, ...] = field(
        default=("",),
        metadata={"doc": "Prompts for sample text at each evaluation; an empty tuple for none."},
    )
    compare_with_xz: bool = option(False, "Add the compression rate of `xz -9` on the same text to the final table.")
    sample_tokens: int = option(64, "Length of each sample text, in tokens.", minimum=1, needs=("prompts",))
    generation: GenerationConfig = section(GenerationConfig)
