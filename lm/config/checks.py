"""Settings that cannot work together, each told in one line before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm.config.training import TASK_FIGURES, TEXT_METRICS
from lm.errors import UserError

# Which objectives a family of models can learn.
ANY = ("decoder", "encoder_decoder", "encoder")
FAMILIES = {
    "causal": ("decoder",),
    "seq2seq": ("encoder_decoder",),
    "span_corruption": ("encoder_decoder",),
    "ul2": ("encoder_decoder",),
    "infilling": ("encoder_decoder",),
    "prefix_lm": ("encoder_decoder",),
    "masked": ("encoder",),
    "classification": ANY,
    "regression": ANY,
    "tagging": ANY,
    "span_qa": ANY,
    "contrastive": ("decoder", "encoder"),
}
PAIRED = ("seq2seq", "contrastive")  # of pairs of texts
LABELLED = ("classification", "regression", "tagging", "span_qa")


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
    if optimizer.schedule_entry.decays_last:
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
    fitting = [name for name, families in FAMILIES.items() if model.family in families]
    if objective.name not in fitting:
        refuse("objective.name", f"{objective.name} does not go with model.family={model.family}; take {_or(fitting)}.")
    _check_task(config, refuse)
    own_length = data.source_length and objective.name != "contrastive"
    if not two_sided and (own_length or model.num_encoder_layers):
        where = "data.source_length" if own_length else "model.num_encoder_layers"
        refuse(where, "is for model.family=encoder_decoder; leave it 0.")
    if model.positions == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        refuse("model.relative_max_distance", "must be more than half of model.relative_buckets.")
    pairs = objective.name in PAIRED
    for split in ("train", "valid", "test"):
        for name, each in getattr(data, split).items():
            where = f"data.{split}.{name}"
            sides = [key for key in ("target_path", "target_field", "pattern") if getattr(each, key)]
            if not pairs and (sides or each.prefix):
                refuse(f"{where}.{(sides or ['prefix'])[0]}", "is for pairs: set objective.name to seq2seq.")
            if pairs and each.kind == "embedded":
                refuse(f"{where}.kind", f"the embedded corpus has no pairs for objective.name={objective.name}.")
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
    if data.separate_vocabularies and objective.name != "seq2seq":
        refuse("data.separate_vocabularies", "is for pairs (objective.name=seq2seq).")
    if data.separate_vocabularies and model.share_embeddings:
        refuse("model.share_embeddings", "two vocabularies cannot share an embedding; set it to False.")
    if model.attention in ("cudnn", "splash") and (model.family != "decoder" or model.positions == "relative"):
        refuse("model.attention", f"{model.attention} serves causal self-attention without bias only; use 'xla'.")
    if model.window and two_sided:
        refuse("model.window", "a sliding window is not defined between source and target; set 0.")
    if objective.name == "ul2" and data.tokenizer.extra_ids < 103 and data.tokenizer.kind != "huggingface":
        refuse("data.tokenizer.extra_ids", "ul2 takes 103: a hundred for spans and three for its modes.")
    masks = objective.name in ("span_corruption", "infilling", "masked")
    if masks and not data.tokenizer.extra_ids and data.tokenizer.kind != "huggingface":
        refuse(
            "data.tokenizer.extra_ids",
            f"{objective.name} needs tokens for the masks; set {1 if objective.name == 'masked' else 100}.",
        )
    for name in generation.metrics:
        if name not in TEXT_METRICS:
            refuse("eval.generation.metrics", f"{name!r} is not one of {', '.join(TEXT_METRICS)}.")
    if generation.metrics and objective.name != "seq2seq":
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
    if config.objective.name in TASK_FIGURES:
        figures = ["loss", *TASK_FIGURES[config.objective.name]]
        figures += ["next_sentence_accuracy"] if config.objective.next_sentence else []
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


def _check_task(config: Any, refuse: Callable[[str, str], None]) -> None:
    """Labelled data and the heads that learn from it."""
    data, model, objective = config.data, config.model, config.objective
    labelled = objective.name in LABELLED
    for split in ("train", "valid", "test"):
        for name, each in getattr(data, split).items():
            where = f"data.{split}.{name}"
            if (
                each.kind in ("conll", "squad")
                and objective.name != {"conll": "tagging", "squad": "span_qa"}[each.kind]
            ):
                refuse(f"{where}.kind", f"{each.kind} is not for objective.name={objective.name}.")
            if not labelled and (each.label_field or each.label_pattern or each.pair_field):
                refuse(f"{where}.label_field", f"objective.name={objective.name} has no labels; leave it empty.")
            if labelled and each.kind == "embedded":
                refuse(f"{where}.kind", f"the embedded corpus has no labels for objective.name={objective.name}.")
            if len(each.part) != 2 or not 0 <= each.part[0] < each.part[1] <= 1:
                refuse(f"{where}.part", f"{each.part} is not a part of 0 to 1, such as (0.0, 0.8).")
            if tuple(each.part) != (0.0, 1.0) and not labelled:
                refuse(f"{where}.part", "is for labelled data; see data.holdout_fraction.")
            if objective.name in ("classification", "regression"):
                if each.kind == "text" and not each.label_pattern:
                    refuse(f"{where}.label_pattern", "text files tell the label by their path; name the pattern.")
                if each.kind != "text" and not each.label_field:
                    refuse(f"{where}.label_field", "name the field of the label.")
    if labelled and not data.valid and data.holdout != "hash":
        refuse("data.holdout", "labelled data is held out by hash; set it to 'hash' or name validation sources.")
    if data.fold >= data.folds:
        refuse("data.fold", f"{data.fold} is not one of the {data.folds} folds; they are counted from 0.")
    if len(set(data.labels)) < len(data.labels):
        refuse("data.labels", "names a label twice.")
    if objective.class_weights and objective.balance_classes:
        refuse("objective.class_weights", "and balance_classes exclude each other; take one.")
    if objective.class_weights and (
        len(objective.class_weights) != len(data.labels) or min(objective.class_weights) < 0
    ):
        refuse(
            "objective.class_weights", "takes a weight, 0 or more, for each of data.labels, which must be named too."
        )
    if objective.class_weights and objective.name not in ("classification", "tagging"):
        refuse("objective.class_weights", f"objective.name={objective.name} has no classes.")
    if objective.balance_classes and objective.name != "classification":
        refuse("objective.balance_classes", "is for classification.")
    if (objective.whole_words or objective.next_sentence) and objective.name != "masked":
        refuse("objective.whole_words", "and next_sentence are for objective.name=masked.")
    if objective.next_sentence and data.sequence_length < 16:
        refuse("objective.next_sentence", "takes rows of 16 tokens or more (data.sequence_length).")
    if objective.name == "span_qa" and data.context_overlap >= data.sequence_length // 2:
        refuse("data.context_overlap", "must be less than half of data.sequence_length.")
    if objective.name == "contrastive" and config.train.accumulation > 1:
        refuse("train.accumulation", "each text is compared with those of the whole batch, which stays whole; set 1.")
    if model.head in ("classes", "embedding") and model.pooling == "none" and objective.name != "tagging":
        refuse("model.pooling", "none is for tagging; take first, last or mean.")
    if model.head in ("classes", "embedding") and model.pooling == "first" and model.family == "decoder":
        refuse("model.pooling", "the first token of a decoder sees no other one; take last or mean.")
    if objective.name == "regression" and model.num_classes != 1:
        refuse("model.num_classes", "is 1 for regression; leave it 0.")
    if model.global_every and not model.window:
        refuse("model.global_every", "is for layers with a window; set model.window.")
    if model.token_types and model.family != "encoder":
        refuse("model.token_types", "is for model.family=encoder.")
    if model.token_types == 1:
        refuse("model.token_types", "two kinds at least are told apart (BERT: 2); or set 0.")
    products = ("query", "key", "value", "out", "up", "gate", "down")
    for name in model.lora_targets:
        if name not in products:
            refuse("model.lora_targets", f"{name!r} is not one of {', '.join(products)}.")
    if config.optimizer.freeze_layers > model.num_layers:
        refuse("optimizer.freeze_layers", f"the model has {model.num_layers} layers.")


def _or(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
