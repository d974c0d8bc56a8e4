"""Settings that cannot work together, each refused with one line before anything is built.

What concerns one task alone is checked by the task (`lm/tasks`).
"""

from __future__ import annotations

from typing import Any

from lm.config.schema import entries
from lm.errors import UserError

SPLITS = ("train", "valid", "test")


def refuse(setting: str, message: str) -> None:
    raise UserError(f"config.{setting}: {message}")


def check_family(config: Any, task: Any) -> None:
    """Raises UserError if models of this family cannot learn the task."""
    if config.model.family not in task.families:
        tasks = entries("lm.tasks.TASKS")
        fitting = [name for name, each in tasks.items() if config.model.family in each.families]
        refuse(
            "objective.name",
            f"{config.objective.name} does not go with model.family={config.model.family}; use {_or(fitting)}.",
        )


def check(config: Any, task: Any) -> None:
    """Raises UserError for the first combination of settings that cannot work."""
    _check_data(config, task)
    _check_model(config)
    _check_training(config)
    _check_generation(config)
    task.check(config, refuse)
    _check_best_metric(config, task)


def check_unread(given: Any, resolved: Any, task: Any) -> None:
    """Raises UserError for a setting that other tasks read and this one does not, if its default was changed.

    Args:
        given: the config before derived values were filled in; `resolved` after.
    """
    for setting, default in unread(task):
        value = _get(given, setting)
        # A config.json holds the value that stands for the default.
        if value not in (default, task.unread_value(setting, resolved)):
            readers = [name for name, each in entries("lm.tasks.TASKS").items() if setting in each.settings]
            refuse(
                setting, f"is not read by objective.name={task.name}, only by {_or(readers)}; leave it at {default!r}."
            )


def unread(task: Any) -> list[tuple[str, Any]]:
    """Returns the settings that other tasks read and this one does not, with their defaults."""
    tasks = entries("lm.tasks.TASKS").values()
    known: frozenset[str] = frozenset().union(*(each.settings for each in tasks))
    return [(setting, default_of(setting)) for setting in sorted(known - task.settings)]


def default_of(setting: str) -> Any:
    """Returns the default of a setting by its dotted name."""
    return _get(entries("lm.config.experiment.DEFAULTS"), setting)


def _get(config: Any, setting: str) -> Any:
    for name in setting.split("."):
        config = getattr(config, name)
    return config


def _check_data(config: Any, task: Any) -> None:
    data = config.data
    if not data.train:
        refuse("data.train", "no source is named; give at least one, e.g. config.data.train.mine = source(path=...).")
    for split in SPLITS:
        sources = getattr(data, split)
        for name, each in sources.items():
            where = f"data.{split}.{name}"
            if not name.isidentifier():
                refuse(f"data.{split}", f"source name {name!r} must be letters, digits and underscores.")
            if len(each.part) != 2 or not 0 <= each.part[0] < each.part[1] <= 1:
                refuse(f"{where}.part", f"{each.part} is not a range within 0 to 1, such as (0.0, 0.8).")
            task.check_source(where, each, config, refuse)
        if sources and not sum(each.weight for each in sources.values()) > 0:
            refuse(f"data.{split}", "all weights are 0; give one source a positive weight.")
    if not data.valid and data.holdout_fraction == 0:
        refuse("data.holdout_fraction", "is 0 and data.valid is empty, so nothing could be evaluated; change one.")
    if data.cleaning.max_chars and data.cleaning.max_chars < data.cleaning.min_chars:
        refuse("data.cleaning.max_chars", "is smaller than min_chars: every document would be dropped.")
    tokenizer = entries("lm.data.tokenizing.TOKENIZERS")[data.tokenizer.kind]
    if tokenizer.needs_file and not data.tokenizer.path:
        refuse("data.tokenizer.path", f"name the {tokenizer.file_type}: such a tokenizer is loaded, not trained.")
    if data.fold >= data.folds:
        refuse("data.fold", f"{data.fold} is not one of the {data.folds} folds; they are counted from 0.")
    if len(set(data.labels)) < len(data.labels):
        refuse("data.labels", "names a label twice.")


def _check_model(config: Any) -> None:
    data, model = config.data, config.model
    two_sided = model.family == "encoder_decoder"
    if not two_sided and model.num_encoder_layers:
        refuse("model.num_encoder_layers", "is for model.family=encoder_decoder; leave it 0.")
    if model.num_heads % model.num_kv_heads:
        refuse("model.num_kv_heads", f"{model.num_kv_heads} does not divide num_heads={model.num_heads}.")
    if model.positions == "rotary" and model.head_dim % 2:
        refuse("model.head_dim", f"{model.head_dim} is odd; rotary positions rotate pairs.")
    if model.positions == "sinusoidal" and model.d_model % 2:
        refuse("model.d_model", f"{model.d_model} is odd; sinusoidal positions come in pairs.")
    if model.positions == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        refuse("model.relative_max_distance", "must be more than half of model.relative_buckets.")
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
    if model.attention in ("cudnn", "splash") and (model.family != "decoder" or model.positions == "relative"):
        refuse("model.attention", f"{model.attention} serves causal self-attention without bias only; use 'xla'.")
    if model.window and two_sided:
        refuse("model.window", "a sliding window is not defined between source and target; set 0.")
    if model.global_every and not model.window:
        refuse("model.global_every", "is for layers with a window; set model.window.")
    if model.token_types and model.family != "encoder":
        refuse("model.token_types", "is for model.family=encoder.")
    if model.token_types == 1:
        refuse("model.token_types", "needs at least two types (BERT: 2); or set 0.")
    projections = ("query", "key", "value", "out", "up", "gate", "down")
    for name in model.lora_targets:
        if name not in projections:
            refuse("model.lora_targets", f"{name!r} is not one of {', '.join(projections)}.")
    if config.optimizer.freeze_layers > model.num_layers:
        refuse("optimizer.freeze_layers", f"the model has {model.num_layers} layers.")


def _check_training(config: Any) -> None:
    optimizer, train = config.optimizer, config.train
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
    if config.eval.stride > config.data.sequence_length:
        refuse(
            "eval.stride", f"{config.eval.stride} is longer than data.sequence_length={config.data.sequence_length}."
        )


def _check_generation(config: Any) -> None:
    generation, text_metrics = config.eval.generation, entries("lm.evaluation.text_metrics.TEXT_METRICS")
    for name in generation.metrics:
        if name not in text_metrics:
            refuse("eval.generation.metrics", f"{name!r} is not one of {', '.join(text_metrics)}.")
    if generation.max_new_tokens > config.model.max_length:
        refuse(
            "eval.generation.max_new_tokens",
            f"{generation.max_new_tokens} is more than the model's positions "
            f"(model.max_length={config.model.max_length}).",
        )
    if generation.min_new_tokens > generation.max_new_tokens:
        refuse("eval.generation.min_new_tokens", "is more than max_new_tokens.")


def _check_best_metric(config: Any, task: Any) -> None:
    """What is best, and when patience ends, is decided by a metric that the evaluations give."""
    data, metric, metrics = config.data, config.checkpoint.best_metric, task.metrics(config)
    sources = sorted(data.valid) or sorted(name for name, each in data.train.items() if each.weight > 0)
    prefixes = ["valid/", *(f"valid/{name}/" for name in sources if len(sources) > 1)]
    if metric not in [prefix + each for prefix in prefixes for each in metrics]:
        known = f"{' or '.join(prefixes)} followed by {', '.join(metrics)}"
        more = task.advice_on_metric(metric)
        refuse("checkpoint.best_metric", f"{metric!r} is not among what is measured: {known}{more}.")


def _or(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
