"""Training settings: optimizer, steps, mesh, checkpoints, logs, evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm.config.schema import entries, option, section


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings that determine how gradients become parameter updates."""

    name: str = option("adamw", registry="lm.training.optimizers.OPTIMIZERS")
    """Name of the optimizer."""
    learning_rate: float = option(1e-3, minimum=0.0)
    """Peak learning rate."""
    schedule: str = option("cosine", registry="lm.training.schedules.SCHEDULES")
    """Learning-rate schedule after the warm-up."""
    warmup_steps: int = option(-1, minimum=-1)
    """Number of steps over which the learning rate rises linearly from 0. If -1, 100 steps are used or, with
    train.num_epochs, a tenth of all steps."""
    decay_steps: int = option(0, minimum=0, read_by="schedule")
    """With schedule='linear' or 'cosine', the step at which the decay ends; 0 means train.num_steps. With
    schedule='warmup_stable_decay', the length of the final decay; 0 means a fifth of train.num_steps."""
    final_fraction: float = option(0.1, minimum=0.0, maximum=1.0, read_by="schedule")
    """Final learning rate, as a fraction of the peak rate."""
    weight_decay: float = option(0.1, minimum=0.0)
    """Decoupled weight decay of matrices. Biases, norms and position parameters are not decayed."""
    b1: float = option(0.9, minimum=0.0, maximum=0.9999, read_by="name")
    """Decay rate of the first moment; for sgd and muon, the momentum. The optimizer adafactor ignores this setting."""
    b2: float = option(0.95, minimum=0.0, maximum=0.99999, read_by="name")
    """Decay rate of the second moment. For adafactor, this is the upper bound of the rate."""
    epsilon: float = option(1e-8, minimum=0.0, read_by="name")
    """Constant added to the denominator of each update. The optimizers adafactor, lion and sgd ignore this setting."""
    clip_norm: float = option(1.0, minimum=0.0)
    """Clip gradients to this global norm. 0 means no clipping."""
    layer_decay: float = option(1.0, minimum=0.0, maximum=1.0)
    """Ratio of each layer's learning rate to that of the layer above. The head has the full learning rate, and the
    embeddings have the lowest. Clark 2020 uses 0.8 to 0.9 for fine-tuning."""
    freeze_layers: int = option(0, minimum=0)
    """Freeze the embeddings and this many blocks, from the bottom up. If 0, no embeddings or blocks are frozen."""
    freeze: tuple[str, ...] = ()
    """Freeze every parameter whose name, as printed at the start of a run, contains one of these strings."""
    ema_decay: float = option(0.0, minimum=0.0, maximum=0.99999)
    """Decay rate of a moving average of the parameters, which is used for evaluation. 0 means no average."""

    @property
    def schedule_entry(self) -> Any:
        """The entry of `lm.training.schedules.SCHEDULES` selected by `schedule`."""
        return entries("lm.training.schedules.SCHEDULES")[self.schedule]


@dataclass(frozen=True)
class TrainConfig:
    num_steps: int = option(-1, minimum=-1)
    """Total number of optimizer steps. If -1, the number is derived from num_epochs, or is 1000 if num_epochs is 0."""
    num_epochs: float = option(0.0, minimum=0.0, maximum=10_000.0)
    """Number of epochs, which may be fractional, over the mixture of all data sources. If 0, num_steps is used
    instead."""
    batch_size: int = option(32, minimum=1, affects="batches")
    """Total number of rows per step, over all devices and microbatches."""
    accumulation: int = option(1, minimum=1, affects="nothing")
    """Number of microbatches per step. More microbatches need less memory and give the same result."""
    patience: int = option(0, minimum=0, affects="nothing")
    """Stop if checkpoint.best_metric has not improved in this many consecutive evaluations. 0 means never."""
    max_minutes: float = option(0.0, minimum=0.0, affects="nothing")
    """Stop after this many minutes of training, including evaluations, over all sessions of the run. 0 means no limit.
    The time is checked every log.every_steps steps. The time of a killed session counts only up to its last line in
    metrics.jsonl. The learning rate depends only on the step, so set num_steps to the number that fits into this
    time."""
    max_bad_steps: int = option(10, minimum=1, affects="nothing")
    """Stop after this many consecutive steps whose loss or gradient is not finite. These steps leave the parameters
    unchanged."""


@dataclass(frozen=True)
class MeshConfig:
    """The number of devices along each mesh axis; one axis may have size -1, which means all remaining devices."""

    data: int = option(-1, minimum=-1)
    """Number of model replicas. The batch is split among the replicas."""
    fsdp: int = option(1, minimum=-1)
    """Number of devices over which both the parameters and the batch are split."""
    tensor: int = option(1, minimum=-1)
    """Number of devices over which the attention heads, MLPs and vocabulary are split."""


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = option(500, minimum=1)
    """Number of steps between checkpoints. A checkpoint is also saved at the end and on SIGTERM."""
    keep_latest: int = option(2, minimum=1)
    """Number of most recent checkpoints to keep."""
    keep_best: int = option(1, minimum=0)
    """Number of best checkpoints to keep, ranked by best_metric."""
    best_metric: str = "valid/loss"
    """Metric by which checkpoints are ranked. Lower is better, except for scores such as valid/bleu. If empty, the last
    step counts as the best. For objective.name='glove', the default is empty unless eval.word_pairs is set."""

    @property
    def highest_is_best(self) -> bool:
        """Whether best_metric is a score (higher is better) rather than a loss or an error."""
        if not self.best_metric:
            return False
        return bool(entries("lm.evaluation.METRICS")[self.best_metric.rpartition("/")[2]].higher_is_better)


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = option(10, minimum=1)
    """Number of steps between lines in metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events to the run directory."""
    wandb_project: str = ""
    """Weights & Biases project to which metrics are also sent (requires the package wandb). If empty, none are sent."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings for generating and scoring the outputs of an encoder-decoder."""

    metrics: tuple[str, ...] = option((), registry="lm.evaluation.text_metrics.TEXT_METRICS")
    """Metrics that compare the generated outputs with references. If empty, no outputs are generated."""
    num_beams: int = option(1, minimum=1, maximum=1000)
    """Beam size. 1 means greedy search."""
    training_beams: int = option(1, minimum=1, maximum=1000, needs=("metrics",))
    """Beam size for evaluations during training."""
    penalty: str = option("power", choices=("power", "gnmt"))
    """Length normalisation. Scores are divided by length^a ('power') or by ((5 + length) / 6)^a ('gnmt', Wu 2016)."""
    length_penalty: float = option(1.0, minimum=-8.0, maximum=8.0)
    """Exponent a of the length normalisation (see `penalty`). 0 means none; larger values favour longer outputs."""
    exact: bool = True
    """Search until no unfinished hypothesis can still win. If False, stop as soon as no unfinished hypothesis could win
    by ending at its next token, as Hugging Face does by default. Stopping early is faster and rarely changes the
    output."""
    max_new_tokens: int = option(0, minimum=0)
    """Maximum output length in tokens, including EOS. If 0, data.sequence_length is used."""
    min_new_tokens: int = option(0, minimum=0)
    """Minimum number of tokens before the EOS token."""
    no_repeat_ngram: int = option(0, minimum=0)
    """Never repeat an n-gram of this length, in tokens, within an output. 0 means no restriction."""
    batch_size: int = option(64, minimum=1)
    """Number of sources to decode together. Sources of similar length are grouped."""
    max_examples: int = option(0, minimum=0, needs=("metrics",))
    """Number of outputs to score in each evaluation during training. 0 means all. The final table and eval.py always
    score all outputs."""
    bleu_tokenize: str = option(
        "auto", choices=("auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"), needs=("metrics",)
    )
    """Tokenisation that sacrebleu uses for BLEU. 'auto' depends on the script of the references: zh for Chinese,
    ja-mecab for Japanese and ko-mecab for Korean (if installed), char for other scripts without spaces, and 13a for the
    rest. Choose 'none' for text that is already tokenised."""


@dataclass(frozen=True)
class SamplingConfig:
    """Settings for sampling tokens in lm.generate and lm.chat, unless flags override them."""

    temperature: float = option(1.0, minimum=0.0)
    """Divisor of the logits. If 0, the most probable token is always chosen."""
    top_k: int = option(0, minimum=0)
    """Sample only from the k most probable tokens. If 0, sample from all tokens."""
    top_p: float = option(1.0, minimum=0.0, maximum=1.0)
    """Sample only from the smallest set of most probable tokens whose total probability reaches p. If 1, sample from
    all tokens."""
    min_p: float = option(0.0, minimum=0.0, maximum=1.0)
    """Drop tokens with less than min_p times the probability of the top token. If 0, drop no tokens."""
    repetition_penalty: float = option(1.0, minimum=0.0)
    """Values above 1 make repetition less likely."""


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(500, minimum=1)
    """Number of steps between evaluations. The model is also evaluated at the end."""
    batch_size: int = option(0, minimum=0)
    """Number of rows per batch. If 0, train.batch_size is used. With data.stateful, it is also the number of stretches
    into which the text is cut; this affects the metrics, so a resumed run must not change it."""
    max_rows: int = option(0, minimum=0)
    """Number of rows to score in each evaluation during training. 0 means all. The final table and eval.py always score
    all rows."""
    stride: int = option(0, minimum=0)
    """Number of tokens between the starts of successive windows. If 0, data.sequence_length is used (no overlap)."""
    bootstrap: int = option(0, minimum=0)
    """Number of bootstrap resamples for 95 % confidence intervals of the metrics of labelled tasks. 0 means none."""
    tag_scheme: str = option(
        "auto", choices=("auto", "none", "IOB1", "IOB2", "BIO", "IOE1", "IOE2", "IOBES", "BIOES", "BILOU", "BMES")
    )
    """Tag scheme, which determines where entities begin and end (objective.name='tagging' only). 'auto' infers the
    scheme from the tags of train and valid; 'none' means that entities are not counted. 'BIO' is the same as 'IOB2',
    and 'BIOES' is the same as 'IOBES'."""
    answer_rules: str = option("auto", choices=("auto", "squad", "cmrc", "characters"))
    """Rules for comparing answers (objective.name='span_qa' only). 'squad' compares words, 'cmrc' is meant for Chinese,
    and 'characters' is meant for other scripts without spaces, such as Japanese. 'auto' selects the rules by the
    predominant script of each data source."""
    prompts: tuple[str, ...] = ("",)
    """Prompts from which sample text is generated at each evaluation. If empty, no text is generated."""
    word_pairs: str = ""
    """File of word pairs with human similarity scores, such as WordSim-353. Evaluations of word vectors report the rank
    correlation between the scores and the cosines of the vectors. If empty, this correlation is not computed."""
    compare_with_xz: bool = False
    """Add the compression rate that `xz -9` achieves on the same text to the final table."""
    sample_tokens: int = option(64, minimum=1, needs=("prompts",))
    """Length of each sample text, in tokens."""
    generation: GenerationConfig = section(GenerationConfig)
    sampling: SamplingConfig = section(SamplingConfig)
