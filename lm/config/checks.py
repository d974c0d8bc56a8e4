"""Checks that settings are compatible before anything is built. Tasks (`lm/tasks`) check their own settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

from lm.config.data import WORD_STEPS
from lm.config.schema import entries
from lm.errors import UserError

TASKS, MODELS = "lm.tasks.TASKS", "lm.models.MODELS"  # registries whose entries declare the settings that they read


def refuse(setting: str, message: str) -> None:
    raise UserError(f"config.{setting}: {message}")


def check(given: Any, config: Any, task: Any) -> None:
    """Raises UserError for incompatible settings. `given` is the config before derived values are filled in."""
    tasks, models, name, family = entries(TASKS), entries(MODELS), config.model.architecture, config.model.family
    if family not in task.families:
        fitting = [name for name, each in tasks.items() if family in each.families]
        refuse("objective.name", f"'{task.name}' does not support model.family={family}; choose {_or(fitting)}.")
    if family not in models[name].families:
        choices = _or(list(models[name].families))
        refuse("model.family", f"model.architecture={name} does not support '{family}'; choose {choices}.")
    if models[name].whole_texts and not task.labels_texts:
        fitting = [each for each, entry in tasks.items() if entry.labels_texts]
        refuse("objective.name", f"model.architecture={name} reads whole texts; choose {_or(fitting)}.")
    if models[name].fit is not None and not task.windowed:
        fitting = [each for each, entry in tasks.items() if entry.windowed]
        refuse("objective.name", f"model.architecture={name} learns from whole documents; choose {_or(fitting)}.")
    if task.trains_words != models[name].word_vectors:
        fitting = [each for each, entry in models.items() if entry.word_vectors == task.trains_words]
        refuse("model.architecture", f"objective.name='{task.name}' does not support '{name}'; choose {_or(fitting)}.")
    for chooser, chosen, registry in (("objective.name", task.name, tasks), ("model.architecture", name, models)):
        for setting, default in unread(registry, chosen):
            # The config.json of a run holds derived values in place of defaults.
            if attrgetter(setting)(given) not in (default, task.unread_value(setting, config)):
                readers = _or([each for each, entry in registry.items() if setting in entry.settings])
                problem = f"this setting is not read by {chooser}={chosen}, only by {readers}"
                refuse(setting, f"{problem}; leave it at {default!r}.")
    _check_data(config, task)
    _check_model(config)
    models[name].check(config, refuse)
    _check_training(config)
    _check_generation(config.eval.generation, config.model.max_length)
    _check_sampling(config.eval.sampling)
    task.check(config, refuse)
    _check_best_metric(config, task)


def unread(registry: Mapping[str, Any], chosen: str) -> list[tuple[str, Any]]:
    """Returns (dotted name, default) for each setting that other entries of the registry read but `chosen` does not."""
    known = {setting for each in registry.values() for setting in each.settings}
    return [(setting, default_of(setting)) for setting in sorted(known - registry[chosen].settings)]


def default_pooling(model: Any) -> str:
    """Returns the value of model.pooling that is used if the setting is empty."""
    return entries(MODELS)[model.architecture].poolings.get(model.family, "last")


def default_of(setting: str) -> Any:
    """Returns the default of the setting with this dotted name."""
    return attrgetter(setting)(entries("lm.config.experiment.DEFAULTS"))


def _check_data(config: Any, task: Any) -> None:
    data = config.data
    for split in ("train", "valid", "test"):
        sources = getattr(data, split)
        for name, each in sources.items():
            where = f"data.{split}.{name}"
            if not name.isidentifier():
                refuse(f"data.{split}", f"{name!r} is not a valid name; use letters, digits and underscores.")
            if len(each.part) != 2 or not 0 <= each.part[0] < each.part[1] <= 1:
                refuse(f"{where}.part", f"{each.part} is not a subrange of [0, 1]; use a tuple such as (0.0, 0.8).")
            task.check_source(where, each, config, refuse)
        if sources and not sum(each.weight for each in sources.values()) > 0:
            refuse(f"data.{split}", "all weights are 0; give at least one data source a positive weight.")
    if not data.valid and data.holdout_fraction == 0:
        advice = "set this fraction above 0, or add a data source to data.valid."
        refuse("data.holdout_fraction", f"evaluation has no data; {advice}")
    if 0 < data.cleaning.max_chars < data.cleaning.min_chars:
        refuse("data.cleaning.max_chars", "this is smaller than min_chars, so every document would be dropped.")
    tokenizer = entries("lm.data.tokenizing.TOKENIZERS")[data.tokenizer.kind]
    if tokenizer.needs_file and not data.tokenizer.path and not config.init_from:  # init_from supplies a tokenizer
        refuse("data.tokenizer.path", f"give a {tokenizer.file_type}; this kind of tokenizer cannot be trained.")
    for step in WORD_STEPS if tokenizer.needs_file else ():
        if (value := getattr(data.cleaning, step)) != (default := default_of(f"data.cleaning.{step}")):
            problem = f"{value!r:.40} would change the text, but a published tokenizer expects the original text"
            refuse(f"data.cleaning.{step}", f"{problem}; leave this setting at {default!r}.")
    reads_breaks = "line_breaks" in tokenizer.reads and not data.tokenizer.path
    if data.tokenizer.line_breaks and reads_breaks and data.cleaning.whitespace == "collapse":
        problem = "data.cleaning.whitespace='collapse' removes all line breaks, so none can be a token"
        refuse("data.tokenizer.line_breaks", f"{problem}; use 'collapse_lines'.")
    if data.fold >= data.folds:
        refuse("data.fold", f"{data.fold} is not less than data.folds={data.folds}; folds are numbered from 0.")
    if len(set(data.labels)) < len(data.labels):
        refuse("data.labels", "the same label appears more than once.")


def _check_model(config: Any) -> None:
    model = config.model
    two_sided = model.family == "encoder_decoder"
    if not two_sided and model.num_encoder_layers:
        refuse("model.num_encoder_layers", "this setting applies only to model.family=encoder_decoder; leave it at 0.")
    for name in ("sequence_length", "source_length"):
        if model.max_length < (length := getattr(config.data, name)):
            refuse("model.max_length", f"{model.max_length} is less than data.{name}={length}.")
    layers = 1 if model.share_layers else model.num_layers
    if config.optimizer.freeze_layers > layers:
        refuse("optimizer.freeze_layers", f"the model has fewer layers ({layers}).")


def check_steps(train: Any) -> None:
    """Raises UserError if both num_epochs and num_steps are set, or if training would take 0 steps."""
    if train.num_epochs and train.num_steps > 0:
        both = f"num_epochs={train.num_epochs:g} and num_steps={train.num_steps} both set the length of training"
        refuse("train.num_epochs", f"{both}; set num_steps to -1, or num_epochs to 0.")
    if not train.num_epochs and train.num_steps == 0:
        refuse("train.num_steps", "the number of steps must not be 0; set it to 1 or more, or set train.num_epochs.")


def check_schedule(config: Any) -> None:
    """Raises UserError if the warm-up and the decay together take more steps than the run has."""
    optimizer, steps, epochs = config.optimizer, config.train.num_steps, config.train.num_epochs
    warmup, decay, decays_last = optimizer.warmup_steps, optimizer.decay_steps, optimizer.schedule_entry.decays_last
    length = f"train.num_steps={steps}" + (f" (train.num_epochs={epochs:g})" if epochs else "")
    if decays_last and warmup + decay > steps:
        refuse("optimizer.warmup_steps", f"{warmup} warm-up steps and decay_steps={decay} together exceed {length}.")
    if not decays_last and warmup >= min(steps, decay) and warmup > 0:
        problem = f"{warmup} warm-up steps do not fit in {length} (decay_steps={decay})"
        refuse("optimizer.warmup_steps", f"{problem}; reduce this number.")


def _check_training(config: Any) -> None:
    train = config.train
    if train.num_steps > 0:  # otherwise, the schedule is known only once the data has been read
        check_schedule(config)
    if train.batch_size % train.accumulation:
        count = train.accumulation
        refuse("train.accumulation", f"batch_size={train.batch_size} cannot be split evenly into {count} microbatches.")
    sizes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    if 0 in sizes or sizes.count(-1) > 1:
        refuse("mesh", f"(data, fsdp, tensor) is {sizes}; only one size may be -1, and the others must be at least 1.")
    if config.eval.stride > (length := config.data.sequence_length):
        refuse("eval.stride", f"{config.eval.stride} exceeds data.sequence_length={length}.")


def _check_generation(generation: Any, limit: int) -> None:
    check_names("eval.generation.metrics", generation.metrics, entries("lm.evaluation.text_metrics.TEXT_METRICS"))
    if generation.max_new_tokens > limit:
        refuse("eval.generation.max_new_tokens", f"{generation.max_new_tokens} exceeds the model's {limit} positions.")
    if generation.min_new_tokens > generation.max_new_tokens:
        refuse("eval.generation.min_new_tokens", "this minimum exceeds max_new_tokens.")


def _check_sampling(sampling: Any) -> None:
    """Raises UserError for values that the bounds of an option cannot exclude, such as a temperature just above 0."""
    decoder: Any = entries("lm.decoding.sampling.Sampling")
    try:
        decoder.of(sampling, {})
    except UserError as error:
        raise UserError(f"config.eval.sampling.{error}") from None


def _check_best_metric(config: Any, task: Any) -> None:
    """Raises UserError unless evaluation computes the metric by which checkpoints are ranked."""
    data, metric, metrics = config.data, config.checkpoint.best_metric, task.metrics(config)
    sources = sorted(data.valid) or sorted(name for name, each in data.train.items() if each.weight > 0)
    if not metric:
        if config.train.patience:
            refuse("train.patience", "checkpoint.best_metric is empty, so no metric can improve; leave this at 0.")
        return
    prefixes = ["valid/", *(f"valid/{name}/" for name in sources if len(sources) > 1)]
    if metric not in [prefix + each for prefix in prefixes for each in metrics]:
        known = f"{' or '.join(prefixes)} followed by one of {', '.join(metrics)}{task.advice_on_metric(metric)}"
        refuse("checkpoint.best_metric", f"this run does not compute {metric!r}; choose {known}.")


def check_names(setting: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            refuse(setting, f"{name!r} is not one of {', '.join(known)}.")


def _or(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
