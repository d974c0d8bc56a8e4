"""Settings that cannot work together, each told in one line before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm.config.training import TEXT_METRICS
from lm.errors import UserError


def check_pairs(config: Any) -> None:
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
    for name in ("sequence_length", "source_length"):
        if model.max_length < getattr(data, name):
            refuse("model.max_length", f"{model.max_length} is shorter than data.{name}={getattr(data, name)}.")
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        refuse(
            "model.attention", "cudnn computes in bfloat16 only; set model.dtype to 'bfloat16' or attention to 'xla'."
        )
    if model.attention in ("cudnn", "splash") and model.attention_dropout > 0:
        refuse("model.attention", f"{model.attention} has no attention_dropout; use 'xla', or set that to 0.")
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
    _check_family(config, refuse)
    _check_best_metric(config, refuse)


def _check_family(config: Any, refuse: Callable[[str, str], None]) -> None:
    """Objective, sources and kernels against the kind of model."""
    data, model, objective, generation = config.data, config.model, config.objective, config.eval.generation
    two_sided = model.family == "encoder_decoder"
    if two_sided == (objective.name == "causal"):
        fitting = "seq2seq, span_corruption, ul2, infilling or prefix_lm" if two_sided else "causal"
        refuse("objective.name", f"{objective.name} does not go with model.family={model.family}; take {fitting}.")
    if not two_sided and (data.source_length or model.num_encoder_layers):
        where = "data.source_length" if data.source_length else "model.num_encoder_layers"
        refuse(where, "is for model.family=encoder_decoder; leave it 0.")
    if model.positions == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        refuse("model.relative_max_distance", "must be more than half of model.relative_buckets.")
    pairs = objective.name == "seq2seq"
    for split in ("train", "valid", "test"):
        for name, each in getattr(data, split).items():
            where = f"data.{split}.{name}"
            sides = [key for key in ("target_path", "target_field", "pattern") if getattr(each, key)]
            if not pairs and (sides or each.prefix):
                refuse(f"{where}.{(sides or ['prefix'])[0]}", "is for pairs: set objective.name to seq2seq.")
            if pairs and each.kind == "embedded":
                refuse(f"{where}.kind", "the embedded corpus has no pairs for objective.name=seq2seq.")
            if pairs and each.kind == "text" and (len(sides) != 1 or sides == ["target_field"]):
                refuse(
                    f"{where}.target_path", "name the file of the targets (or a `pattern`, where one file has both)."
                )
            if pairs and each.kind != "text" and sides != ["target_field"]:
                refuse(f"{where}.target_field", f"name the field of the target (kind={each.kind}).")
            if pairs and each.kind == "text" and each.document != "line":
                refuse(f"{where}.document", "pairs in text files are read line by line: set it to 'line'.")
    if pairs and data.holdout != "hash" and not data.valid:
        refuse("data.holdout", "pairs are held out by hash; set it to 'hash' or name validation sources.")
    if data.separate_vocabularies and not pairs:
        refuse("data.separate_vocabularies", "is for pairs (objective.name=seq2seq).")
    if data.separate_vocabularies and model.share_embeddings:
        refuse("model.share_embeddings", "two vocabularies cannot share an embedding; set it to False.")
    if model.attention in ("cudnn", "splash") and (two_sided or model.positions == "relative"):
        refuse("model.attention", f"{model.attention} serves causal self-attention without bias only; use 'xla'.")
    if model.window and two_sided:
        refuse("model.window", "a sliding window is not defined between source and target; set 0.")
    if objective.name == "ul2" and data.tokenizer.extra_ids < 103 and data.tokenizer.kind != "huggingface":
        refuse("data.tokenizer.extra_ids", "ul2 takes 103: a hundred for spans and three for its modes.")
    masks = objective.name in ("span_corruption", "infilling")
    if masks and not data.tokenizer.extra_ids and data.tokenizer.kind != "huggingface":
        refuse("data.tokenizer.extra_ids", f"{objective.name} needs tokens for the masks; set 100.")
    for name in generation.metrics:
        if name not in TEXT_METRICS:
            refuse("eval.generation.metrics", f"{name!r} is not one of {', '.join(TEXT_METRICS)}.")
    if generation.metrics and not pairs:
        refuse("eval.generation.metrics", "outputs are scored against references: set objective.name to seq2seq.")
    if generation.max_new_tokens > model.max_length:
        refuse(
            "eval.generation.max_new_tokens",
            f"{generation.max_new_tokens} is more than the model's positions (model.max_length={model.max_length}).",
        )
    if generation.min_new_tokens > generation.max_new_tokens:
        refuse("eval.generation.min_new_tokens", "is more than max_new_tokens.")


def _check_best_metric(config: Any, refuse: Callable[[str, str], None]) -> None:
    """What is best, and when patience ends, is decided by a figure that the evaluations give."""
    data, metric = config.data, config.checkpoint.best_metric
    figures = ["loss", "perplexity", "token_accuracy"]
    if config.objective.name == "causal":
        figures += ["bits_per_byte", "word_perplexity"]
    figures += [figure for name in config.eval.generation.metrics for figure in TEXT_METRICS[name]]
    sources = sorted(data.valid) or sorted(name for name, each in data.train.items() if each.weight > 0)
    prefixes = ["valid/", *(f"valid/{name}/" for name in sources if len(sources) > 1)]
    if metric not in [prefix + figure for prefix in prefixes for figure in figures]:
        scores = any(metric.endswith(f"/{figure}") for each in TEXT_METRICS.values() for figure in each)
        more = "; scores of outputs are chosen in eval.generation.metrics" if scores else ""
        known = f"{' or '.join(prefixes)} followed by {', '.join(figures)}"
        refuse("checkpoint.best_metric", f"{metric!r} is not among what is measured: {known}{more}.")
