"""Every setting: its name, type, default, meaning, unit and check. There is no other place.

A file in `configs/` starts from `defaults()` (an ml_collections ConfigDict made of the dataclasses
below), changes what differs and returns it. The command line overrides single values with
`--config.model.num_layers=6`. `Config.from_dict` turns the result back into frozen dataclasses and
checks the whole before anything is built: unknown keys, types, ranges, and pairs of settings that
cannot work together. Checks that need devices or a tokenizer are made by those who know them
(`lm/parallel/mesh.py`, `lm/data/prepare.py`) and are told in the same way, as a UserError.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from lm.errors import UserError
from lm.schema import build, option, section


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from."""

    kind: str = option(
        "text",
        "embedded (the running Python's own documentation), text, jsonl, tsv, parquet or tfds.",
        choices=("embedded", "text", "jsonl", "tsv", "parquet", "tfds"),
    )
    path: str = option("", "File or glob (.gz is unpacked); for tfds the name of the data set, with version if wanted.")
    split: str = option("train", "tfds only: the split, e.g. train or train[:1%].")
    data_dir: str = option("", "tfds only: where the prepared data sets are; empty for TFDS's default.")
    field: str = option("text", "Field or column that holds the text (jsonl, tsv, parquet, tfds).")
    document: str = option(
        "file",
        "text only: what one document is: a file, a line, a paragraph (ends at an empty line), or what lies "
        "between two `separator`s.",
        choices=("file", "line", "paragraph", "separator"),
    )
    separator: str = option("<|endoftext|>", "text with document=separator: the separating string.")
    encoding: str = option("utf-8", "Text encoding of the files.")
    weight: float = option(
        1.0, "Share of the rows taken from this source, relative to the others; 0 switches it off.", minimum=0.0
    )


@dataclass(frozen=True)
class CleaningConfig:
    """What is done to each document before it is tokenised, in this order."""

    unicode: str = option("", "Unicode normal form, or empty for none.", choices=("", "NFC", "NFKC"))
    strip_html: bool = option(False, "Remove HTML tags and resolve entities.")
    strip_control: bool = option(False, "Remove control characters other than newline and tab.")
    whitespace: str = option(
        "keep",
        "keep; trim (both ends of the document); lines (also trailing space and runs of empty lines); "
        "collapse (every run of white space to one space).",
        choices=("keep", "trim", "lines", "collapse"),
    )
    min_chars: int = option(1, "Shorter documents are dropped.", minimum=0)
    max_chars: int = option(0, "Longer documents are dropped; 0 for no bound.", minimum=0)
    deduplicate: bool = option(False, "Drop exact duplicates of earlier documents of the same source.")


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes numbers. Trained on the training split unless `path` names a file."""

    kind: str = option(
        "sentencepiece",
        "bytes, characters (of the training text), sentencepiece, or huggingface (a tokenizer.json).",
        choices=("bytes", "characters", "sentencepiece", "huggingface"),
    )
    path: str = option("", "Load this SentencePiece model or tokenizer.json in place of training one.")
    vocab_size: int = option(8192, "sentencepiece: size of the vocabulary to train.", minimum=300, maximum=1_000_000)
    algorithm: str = option("unigram", "sentencepiece: unigram or bpe.", choices=("unigram", "bpe"))
    train_megabytes: float = option(64.0, "sentencepiece: train on at most so much text, MB.", minimum=0.001)
    bos_token: str = option("", "huggingface: the piece put before each document; empty to guess from the file.")
    eos_token: str = option("", "huggingface: the piece put after each document; empty to guess from the file.")


@dataclass(frozen=True)
class DataConfig:
    """Documents -> cleaning -> tokens -> packed rows. Row i depends on the config and i alone."""

    train: dict[str, SourceConfig] = field(default_factory=dict, metadata={"doc": "Training sources by name."})
    valid: dict[str, SourceConfig] = field(
        default_factory=dict, metadata={"doc": "Validation sources; without any, a part of train is held out."}
    )
    test: dict[str, SourceConfig] = field(default_factory=dict, metadata={"doc": "Test sources, for eval.py."})
    holdout: str = option(
        "hash",
        "How the held-out part of train is chosen: by a hash of each document, or the tail (the last characters).",
        choices=("hash", "tail"),
    )
    holdout_fraction: float = option(0.1, "Share of train held out when `valid` is empty.", minimum=0.0, maximum=0.5)
    cleaning: CleaningConfig = section(CleaningConfig)
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    sequence_length: int = option(256, "Tokens a row.", minimum=2)
    num_workers: int = option(0, "Processes that prepare batches; 0 for a thread. Never changes the data.", minimum=0)
    prefetch: int = option(4, "Batches prepared ahead.", minimum=1)
    cache_dir: str = option("", "Where token stores are kept; empty for $LM_CACHE_DIR, or else ~/.cache/lm.")


@dataclass(frozen=True)
class ModelConfig:
    """A stack of Transformer blocks. Zeros stand for "derived", as each line says."""

    vocab_size: int = option(
        0, "Rows of the embedding; 0 for the tokenizer's, rounded up to vocab_multiple.", minimum=0
    )
    vocab_multiple: int = option(1, "Round a derived vocab_size up to a multiple of this (128 suits TPU).", minimum=1)
    num_layers: int = option(6, "Blocks.", minimum=1)
    d_model: int = option(384, "Width of the residual stream.", minimum=1)
    num_heads: int = option(6, "Query heads.", minimum=1)
    num_kv_heads: int = option(0, "Key/value heads: 0 for num_heads, fewer for grouped, 1 for multi-query.", minimum=0)
    head_dim: int = option(0, "Size of a head; 0 for d_model / num_heads.", minimum=0)
    d_ff: int = option(0, "Hidden width of the MLP; 0 for 4 x d_model.", minimum=0)
    max_length: int = option(0, "Longest sequence, in tokens; 0 for data.sequence_length.", minimum=0)
    positions: str = option("rotary", "How order is told.", choices=("learned", "sinusoidal", "rotary", "none"))
    rotary_theta: float = option(10_000.0, "Base of the rotary angles.", minimum=1.0)
    rotary_interleaved: bool = option(False, "Rotate adjacent pairs (as llama.c) in place of the two halves (as HF).")
    norm: str = option("layernorm", "Normalisation.", choices=("layernorm", "rmsnorm"))
    norm_position: str = option("pre", "Before each sub-layer, or after its residual sum.", choices=("pre", "post"))
    norm_epsilon: float = option(1e-5, "Added to the variance.", minimum=0.0)
    activation: str = option(
        "gelu",
        "gelu is the exact form (erf), gelu_tanh GPT-2's approximation; swiglu and geglu (exact) are gated.",
        choices=("gelu", "gelu_tanh", "relu", "swiglu", "geglu"),
    )
    use_bias: bool = option(True, "Biases in the products and in layernorm.")
    tie_embeddings: bool = option(True, "The output matrix is the embedding.")
    scale_embeddings: bool = option(False, "Multiply embeddings by sqrt(d_model), as Vaswani 2017.")
    dropout: float = option(
        0.0, "On embeddings, attention weights and both residual branches.", minimum=0.0, maximum=0.9
    )
    window: int = option(
        0, "Sliding window: how many tokens back, itself included, a token sees; 0 for all.", minimum=0
    )
    init_std: float = option(0.02, "Standard deviation of the initial weights.", minimum=0.0)
    init_residual_scaling: bool = option(True, "Divide that of residual outputs by sqrt(2 num_layers), as GPT-2.")
    dtype: str = option(
        "float32", "Of the computation; parameters are always float32.", choices=("float32", "bfloat16")
    )
    attention: str = option(
        "auto",
        "Attention kernel: xla (anywhere), cudnn (NVIDIA, bfloat16), splash (TPU); auto chooses by platform.",
        choices=("auto", "xla", "cudnn", "splash"),
    )
    scan_layers: bool = option(True, "Stack the layers and scan over them: compile time does not grow with depth.")
    remat: str = option(
        "none",
        "What the backward pass recomputes: none, all of each block (full), or all but its matrix products (dots).",
        choices=("none", "full", "dots"),
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how the error is counted. Plain cross-entropy is always reported beside it."""

    name: str = option("causal", "causal: every token from those before it.", choices=("causal",))
    label_smoothing: float = option(
        0.0, "Mass taken from the target and spread evenly over the whole vocabulary (V).", minimum=0.0, maximum=0.9
    )
    z_loss: float = option(0.0, "Weight of log(Z)^2, which keeps logits small (PaLM: 1e-4).", minimum=0.0)


@dataclass(frozen=True)
class OptimizerConfig:
    """From gradients to updates."""

    name: str = option("adamw", "Optimizer.", choices=("adamw", "adafactor", "lion", "muon", "sgd"))
    learning_rate: float = option(1e-3, "Peak.", minimum=0.0)
    schedule: str = option(
        "cosine", "After warm-up.", choices=("constant", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay")
    )
    warmup_steps: int = option(100, "Steps of linear warm-up from 0.", minimum=0)
    decay_steps: int = option(
        0,
        "Step at which linear and cosine reach their end, 0 for train.num_steps; for warmup_stable_decay the length "
        "of the final decay, 0 for a fifth of train.num_steps.",
        minimum=0,
    )
    final_fraction: float = option(0.1, "Learning rate at the end as a share of the peak.", minimum=0.0, maximum=1.0)
    weight_decay: float = option(0.1, "Decoupled; on matrices, never on biases, norms or positions.", minimum=0.0)
    b1: float = option(
        0.9, "Decay of the first moment; momentum for sgd and muon; not read by adafactor.", minimum=0.0, maximum=0.9999
    )
    b2: float = option(0.95, "Decay of the second moment; its upper bound for adafactor.", minimum=0.0, maximum=0.99999)
    epsilon: float = option(1e-8, "Added to the root of the second moment (adamw, and muon's AdamW part).", minimum=0.0)
    clip_norm: float = option(1.0, "Clip the global gradient norm to this; 0 for no clipping.", minimum=0.0)
    ema_decay: float = option(
        0.0,
        "Keep an average of the parameters with this decay and evaluate with it; 0 for none.",
        minimum=0.0,
        maximum=0.99999,
    )


@dataclass(frozen=True)
class TrainConfig:
    num_steps: int = option(1000, "Optimizer steps in all.", minimum=1)
    batch_size: int = option(32, "Rows a step, over all devices and accumulated microbatches.", minimum=1)
    accumulation: int = option(
        1, "Microbatches a step: splits the batch, changes memory and not the result.", minimum=1
    )
    max_bad_steps: int = option(
        10, "Stop after so many steps in a row whose loss or gradient was not finite (each is skipped).", minimum=1
    )


@dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; one of them may be -1 for "all that are left"."""

    data: int = option(-1, "Copies of the model, each with its part of the batch.", minimum=-1)
    fsdp: int = option(1, "Parameters and batch both split over these.", minimum=-1)
    tensor: int = option(1, "Heads, MLP and vocabulary split over these.", minimum=-1)


@dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = option(500, "Save every so many steps (and at the end, and on SIGTERM).", minimum=1)
    keep_latest: int = option(2, "Latest checkpoints kept.", minimum=1)
    keep_best: int = option(1, "Best checkpoints kept, by best_metric.", minimum=0)
    best_metric: str = option("valid/loss", "What best means: the lowest value of this metric.")


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = option(10, "A line in metrics.jsonl every so many steps.", minimum=1)
    tensorboard: bool = option(True, "Write TensorBoard events into the run directory.")
    wandb_project: str = option("", "Also log to this Weights & Biases project (pip install wandb); empty for none.")


@dataclass(frozen=True)
class EvalConfig:
    every_steps: int = option(500, "Evaluate every so many steps, and at the end.", minimum=1)
    batch_size: int = option(0, "Rows at a time; 0 for train.batch_size.", minimum=0)
    max_rows: int = option(0, "Rows scored during training, 0 for all; the end and eval.py score all.", minimum=0)
    stride: int = option(0, "Tokens by which windows advance; 0 for sequence_length, less for overlap.", minimum=0)
    prompts: tuple[str, ...] = field(
        default=("",), metadata={"doc": "Continued as sample text at each evaluation; empty tuple for none."}
    )
    compare_with_xz: bool = option(False, "Show in the final table what `xz -9` makes of the same text.")
    sample_tokens: int = option(64, "Length of sample text, in tokens.", minimum=1)


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = option(0, "Of the initial weights, the data order, dropout and sampling.", minimum=0)
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    train: TrainConfig = section(TrainConfig)
    mesh: MeshConfig = section(MeshConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
    eval: EvalConfig = section(EvalConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Builds, resolves derived values and checks. Raises UserError at the first thing wrong."""
        config = build(cls, values)
        config = _resolve(config)
        _check_pairs(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        return cls.from_dict(json.loads(text))


def defaults() -> ml_collections.ConfigDict:
    """What a file in configs/ starts from: every setting at its default."""
    return ml_collections.ConfigDict(Config().to_dict(), convert_dict=True)


def source(**values: Any) -> ml_collections.ConfigDict:
    """One source for `config.data.train.NAME = source(kind=..., path=...)`."""
    return ml_collections.ConfigDict(dataclasses.asdict(SourceConfig(**values)))


def _resolve(config: Config) -> Config:
    """Fills in the zeros that stand for "derived", save vocab_size, which the tokenizer gives."""
    model, steps = config.model, config.train.num_steps
    optimizer = config.optimizer
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
        max_length=model.max_length or config.data.sequence_length,
    )
    if optimizer.decay_steps == 0:
        wsd = optimizer.schedule == "warmup_stable_decay"
        optimizer = dataclasses.replace(optimizer, decay_steps=max(1, steps // 5) if wsd else steps)
    return dataclasses.replace(
        config,
        model=model,
        optimizer=optimizer,
        eval=dataclasses.replace(
            config.eval,
            batch_size=config.eval.batch_size or config.train.batch_size,
            stride=config.eval.stride or config.data.sequence_length,
        ),
    )


def _check_pairs(config: Config) -> None:
    """Settings that cannot work together."""
    data, model, optimizer, train = config.data, config.model, config.optimizer, config.train

    def refuse(where: str, message: str) -> None:
        raise UserError(f"config.{where}: {message}")

    if not data.train:
        refuse("data.train", "no source is named; give at least one, e.g. config.data.train.mine = source(path=...).")
    for split in ("train", "valid", "test"):
        sources = getattr(data, split)
        for name, each in sources.items():
            if not name.isidentifier():
                refuse(f"data.{split}", f"source name {name!r} must be letters, digits and underscores.")
            if each.kind != "embedded" and not each.path:
                refuse(
                    f"data.{split}.{name}.path",
                    "is empty; name a file, a glob or a TFDS data set (after a colon: --config=FILE.py:PATH).",
                )
            if each.kind == "text" and each.document == "separator" and not each.separator:
                refuse(f"data.{split}.{name}.separator", "is empty although document='separator'.")
        if sources and not sum(each.weight for each in sources.values()) > 0:
            refuse(f"data.{split}", "all weights are 0; give one source a positive weight.")
    if not data.valid and data.holdout_fraction == 0:
        refuse("data.holdout_fraction", "is 0 and data.valid is empty, so nothing could be evaluated; change one.")
    if data.cleaning.max_chars and data.cleaning.max_chars < data.cleaning.min_chars:
        refuse("data.cleaning.max_chars", "is smaller than min_chars: every document would be dropped.")
    if data.tokenizer.kind == "huggingface" and not data.tokenizer.path:
        refuse("data.tokenizer.path", "a huggingface tokenizer is loaded, not trained: name its tokenizer.json.")
    if model.num_heads % model.num_kv_heads:
        refuse("model.num_kv_heads", f"{model.num_kv_heads} does not divide num_heads={model.num_heads}.")
    if model.positions == "rotary" and model.head_dim % 2:
        refuse("model.head_dim", f"{model.head_dim} is odd; rotary positions turn pairs.")
    if model.positions == "sinusoidal" and model.d_model % 2:
        refuse("model.d_model", f"{model.d_model} is odd; sinusoidal positions come in pairs.")
    if model.max_length < data.sequence_length:
        refuse("model.max_length", f"{model.max_length} is shorter than data.sequence_length={data.sequence_length}.")
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        refuse(
            "model.attention", "cudnn computes in bfloat16 only; set model.dtype to 'bfloat16' or attention to 'xla'."
        )
    if model.attention in ("cudnn", "splash") and model.dropout > 0:
        refuse("model.attention", f"{model.attention} has no dropout of attention weights; use 'xla' or dropout 0.")
    if model.attention == "splash" and data.sequence_length % 128:
        refuse("model.attention", f"splash takes multiples of 128, and data.sequence_length is {data.sequence_length}.")
    if optimizer.schedule == "warmup_stable_decay":
        if optimizer.warmup_steps + optimizer.decay_steps > train.num_steps:
            refuse(
                "optimizer.warmup_steps",
                f"warm-up ({optimizer.warmup_steps}) and decay ({optimizer.decay_steps}) together are longer than "
                f"the run (train.num_steps={train.num_steps}).",
            )
    elif optimizer.warmup_steps >= min(train.num_steps, optimizer.decay_steps) and optimizer.warmup_steps > 0:
        refuse(
            "optimizer.warmup_steps",
            f"{optimizer.warmup_steps} steps of warm-up do not fit into the run of train.num_steps={train.num_steps} "
            f"(decay_steps={optimizer.decay_steps}); lower it.",
        )
    if train.batch_size % train.accumulation:
        refuse(
            "train.accumulation",
            f"{train.accumulation} microbatches do not divide train.batch_size={train.batch_size}.",
        )
    sizes = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if 0 in sizes or sizes.count(-1) > 1:
        refuse("mesh", f"sizes (data, fsdp, tensor) = {sizes}: each is at least 1, and at most one is -1.")
    if config.eval.stride > data.sequence_length:
        refuse("eval.stride", f"{config.eval.stride} is longer than data.sequence_length={data.sequence_length}.")
