"""Scores a checkpoint of a run. The devices may differ in number and kind from those used in training."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from lm.config import Config, MeshConfig
from lm.config.experiment import replace_settings
from lm.config.model import DROPOUT_RATES
from lm.config.schema import differences_affecting
from lm.data.reading.wording import TextSource
from lm.data.storing.overlap import Hashes
from lm.errors import UserError
from lm.evaluation.evaluator import SplitEvaluation
from lm.files import check_below
from lm.models import build_model
from lm.models.protocol import Model
from lm.parallel.distributed import is_first
from lm.parallel.mesh import check_divisible, make_mesh
from lm.reporting.progress import counting
from lm.reporting.table import Result, write_results
from lm.runs.baselines import Baselines
from lm.runs.directory import RunDirectory
from lm.runs.fingerprint import DERIVED_FROM_DATA
from lm.runs.mixing import Mix, check_mixable, cut_contexts, mixed, tuned_weight
from lm.runs.prepare import check_only_reads, load_tokenizers, prepare_split
from lm.runs.results import make_result
from lm.tasks import task_of
from lm.tasks.task import EvaluationSetup, Tokenizers
from lm.training.state import abstract_state

MODEL = ("function", "shapes")  # model settings with these effects must have the same values in --config and in the run


@dataclass(frozen=True)
class Options:
    """Options of eval.py, shared by all runs that it evaluates."""

    step: str = "best"  # best, latest, or a step number
    split: str = "valid"  # valid, test or train; SPLIT/SOURCE selects one data source of the split
    text: str = ""  # text file or glob pattern to score instead of the run's data
    config: Config | None = None  # config whose data is used instead of the run's data
    config_name: str = ""
    average: int = 1  # number of checkpoints to average
    mix: Mix | None = None  # another run, whose model is mixed with the evaluated model
    # Each of the following options overrides the config unless it is 0 or None:
    stride: int = 0
    batch_size: int = 0
    num_beams: int = 0
    length_penalty: float | None = None
    cache_dir: str = ""  # the user's data.cache_dir; the value in the run directory is ignored


@dataclass(frozen=True)
class Evaluated:
    """The result of evaluating a run, and where to write it."""

    result: Result
    root: Path  # the run directory
    directory: Path  # the directory below `root` to which the result is written
    stem: str  # stem of the file names
    evaluation: SplitEvaluation  # holds the predictions, if there are any

    def write(self) -> None:
        """Writes the results and predictions, and prints their paths. If writing fails, prints a warning."""
        try:
            check_below(self.directory, self.root)
            paths = write_results(self.directory, self.stem, self.result)
            paths += self.evaluation.write(self.directory, self.stem.replace("results", "predictions", 1))
        except OSError as error:
            reason = error.strerror or error
            print(f"warning: results could not be written to {self.directory} ({reason}).", file=sys.stderr)
        else:
            more = [path.suffix if path.stem == self.stem else path.name for path in paths[1:]]
            print(f"written: {paths[0]}, {', '.join(more)}")


def evaluate_run(root: Path, options: Options, name: str = "", baselines: Baselines | None = None) -> Evaluated:
    """Scores every example of the split once. `name` labels the run in tables. Raises UserError for invalid input.

    If `baselines` is given, the baselines of the task are scored too.
    """
    directory = RunDirectory.existing(root)
    own = directory.load_config()
    tokenizers = load_tokenizers(own, directory.root)
    config = evaluation_config(root, own, options)
    task = task_of(config)
    stores, references = _open_data(config, tokenizers, options)
    split = f"text {Path(options.text).name}" if options.text else options.split
    model = build_model(config.model, task.head(config))
    dtypes = {"dtype": config.model.dtype, "activation_dtype": model.activation_dtype}
    mesh = choose_mesh(config)
    params, step, parameters, is_best = read_params(directory, config, model, mesh, options)
    rows = task.eval_rows(config, tokenizers.target, stores)
    mix_details: dict[str, Any] = {}
    if options.mix is not None:
        model, params, mix_details = _mixed(options.mix, config, tokenizers, model, params, mesh, options)
        name = f"{name or root} + {mix_details['weight']:.3g} {options.mix.name}"
    beside: list[Result] = []
    if baselines is not None:  # scoring may take minutes, so the checkpoints are read before it
        trained_on = own if own.data.train else config  # an imported run has no data of its own
        trained_on = replace_settings(trained_on, {"data.cache_dir": options.cache_dir})
        section = "test" if options.text else options.split.partition("/")[0]
        beside = baselines.score(trained_on, config, tokenizers, stores, references, section, split)
    evaluation = task.evaluation(EvaluationSetup(config, model, mesh, tokenizers, rows, references, options.split))
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"
    if is_first():
        best = f" (best {own.checkpoint.best_metric})" if is_best else ""
        noun, counted = ("examples", "documents") if task.counts_examples else ("tokens", "targets")
        count = f"{sum(each.totals[counted] for each in rows.values()):,} {noun}"
        length, stride = config.data.sequence_length, config.eval.stride
        windows = f"windows of {length}, stride {stride}" if task.windowed else "rows"
        outputs = f", {sum(map(len, references.values())):,} outputs" if references else ""
        data = f"{split}, {count} in {evaluation.num_rows:,} {windows}{outputs}"
        print(f"{name or root}: step {step:,}{best}, {data}, on {devices}", flush=True)
    began = time.monotonic()
    with counting(evaluation.num_rows, "rows", enabled=is_first()) as report:
        values = evaluation.evaluate(params, step, report)
    seconds = time.monotonic() - began
    details = {
        "parameters": parameters,
        "config": options.config_name or "config.json of the run",
        "data": {source: each.record() for source, each in stores.items()},
        **({"generation": dataclasses.asdict(config.eval.generation)} if references else {}),
        "devices": devices,
        **dtypes,
        "batch_size": evaluation.batch_size,
        **({"mix": mix_details} if mix_details else {}),
    }
    of_training = options.split.partition("/")[0] == "train" and options.config is None
    trained = None if of_training else Hashes.load(directory.train_hashes_path)
    labels: dict[str, Any] = {"run": name or str(root), "step": step, "split": split}
    result = make_result(config, evaluation, rows, values, stores, tokenizers, seconds, details, trained, **labels)
    if mix_details:
        how = f"tuned on {mix_details['tuned_on']}" if mix_details["tuned_on"] else "given"
        parts = f"{mix_details['run']}, step {mix_details['step']}, with weight {mix_details['weight']:.4g} ({how})"
        cut = f"; {problem}" if (problem := mix_details.get("cut_contexts")) else ""
        result.signatures["mix"] = f"the probabilities are interpolated with those of {parts}{cut}"
    result = dataclasses.replace(result, baselines=tuple(beside))
    return Evaluated(result, directory.root, directory.eval_dir(step), _stem(options, own, config), evaluation)


def _mixed(
    mix: Mix,
    config: Config,
    tokenizers: Tokenizers,
    model: Model,
    params: Any,
    mesh: Mesh,
    options: Options,
) -> tuple[Any, Any, dict[str, Any]]:
    """Mixes a model with the best model of another run. Returns the mixture, its parameters, and values to record."""
    directory = RunDirectory.existing(mix.root)
    of_other = directory.load_config()
    fingerprints = tokenizers.target.fingerprint, load_tokenizers(of_other, mix.root).target.fingerprint
    check_mixable(mix, config, of_other, fingerprints, config.data.sequence_length)
    other_config = evaluation_config(mix.root, of_other, Options())
    other = build_model(other_config.model, task_of(other_config).head(other_config))
    other_params, step, *_ = read_params(directory, other_config, other, mesh, Options())
    models, both, tuned_on = (model, other), (params, other_params), ""
    weight = mix.weight
    if weight is None:
        stores, _ = _open_data(config, tokenizers, dataclasses.replace(options, split="valid", text=""))
        rows = task_of(config).eval_rows(config, tokenizers.target, stores)
        devices = mesh.devices.size
        weight, tuned_on = (
            tuned_weight(models, both, rows, -(-config.eval.batch_size // devices) * devices, mesh),
            "the validation split",
        )
        print(f"--mix={mix.root}: the best weight on the validation split is {weight:.4f}", flush=True)
    details = {"run": str(mix.root), "step": step, "weight": weight, "tuned_on": tuned_on}
    if problem := cut_contexts(config, other_config):
        details["cut_contexts"] = problem
    return *mixed(models, both, weight), details


def read_params(
    directory: RunDirectory, config: Config, model: Model, mesh: Mesh, options: Options
) -> tuple[Any, int, str, bool]:
    """Returns the parameters, their step, a description of them, and whether their step is the best one."""
    abstract = abstract_state(config, model, optax.identity(), mesh).params
    ema = config.optimizer.ema_decay > 0
    number = int(options.step) if options.step.isdecimal() else None
    with directory.open_checkpoints(config) as checkpoints:
        best = checkpoints.best()
        if options.average > 1:
            params, steps = checkpoints.average_params(options.average, abstract, number, ema)
            return params, steps[-1], f"average of the checkpoints at steps {', '.join(map(str, steps))}", False
        params, found = checkpoints.restore_params(abstract, "best" if options.step == "best" else number, ema=ema)
    return params, found, "moving average" if ema else "trained", found == best


def evaluation_config(root: Path, own: Config, options: Options) -> Config:
    """Returns the run's validated config, with the data and evaluation settings from `options`."""
    values = own.to_dict()
    values["data"]["cache_dir"] = options.cache_dir
    if options.config is not None:
        unknown = [name for name in DERIVED_FROM_DATA if not attrgetter(name)(options.config)]
        other = replace_settings(options.config, {name: attrgetter(name)(own) for name in unknown}).to_dict()
        lines = differences_affecting(MODEL, Config, {"model": values["model"]}, {"model": other["model"]})
        if lines:
            problem = f"its model differs from the model of {root} ({'; '.join(lines)})"
            raise UserError(
                f"--config={options.config_name}: {problem}; override these settings, or use another config."
            )
        if (labels := other["data"]["labels"]) != own.data.labels:
            problem = f"its data.labels ({', '.join(labels)}) must match the labels of {root}"
            order = f"including their order ({', '.join(own.data.labels)})"
            raise UserError(f"--config={options.config_name}: {problem}, {order}; omit data.labels.")
        if other["eval"]["tag_scheme"] == "auto":
            other["eval"]["tag_scheme"] = own.eval.tag_scheme
        values |= {"data": other["data"], "eval": other["eval"]}
    if options.text:
        if reason := task_of(own).plain_text_refusal:
            raise UserError(f"--text: {root} {reason}.")
        values["data"]["test"] = {"text": {"kind": "text", "path": options.text}}
    generation = values["eval"]["generation"]
    for section, name in ((values["eval"], "stride"), (values["eval"], "batch_size"), (generation, "num_beams")):
        section[name] = getattr(options, name) or section[name]
    if options.length_penalty is not None:
        generation["length_penalty"] = options.length_penalty
    values["train"]["num_epochs"] = 0.0  # the number of steps is already known
    config = Config.from_dict({**values, "checkpoint": {}})
    if (options.num_beams or options.length_penalty is not None) and not config.eval.generation.metrics:
        flag = "num_beams" if options.num_beams else "length_penalty"
        raise UserError(
            f"--{flag}: evaluations of {root} generate no text (eval.generation.metrics is empty); omit the flag."
        )
    replaced: dict[str, Any] = {f"model.{rate}": 0.0 for rate in DROPOUT_RATES} | {"model.remat": "none"}
    # The attention kernel that was used in training might not run on this hardware.
    replaced["model.attention"] = "xla" if config.model.attention == "xla" else "auto"
    if options.text:
        replaced["data.test"] = {"text": TextSource(**vars(config.data.test["text"]))}
    # The run's own metric determines the best checkpoint, even if this metric cannot be computed on other data.
    return replace_settings(config, {**replaced, "checkpoint": own.checkpoint})


def _open_data(config: Config, tokenizers: Tokenizers, options: Options) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns the stores of a split or of one of its data sources, and the references for generated outputs."""
    split, _, source = ("test", "", "") if options.text else options.split.partition("/")
    if options.config is None:
        check_only_reads(config, split)
    stores = prepare_split(config, tokenizers, split)
    if source and source not in stores:
        problem = f"{split} has no data source named {source!r}"
        raise UserError(f"--split={options.split}: {problem}; choose one of {', '.join(stores)}.")
    references = task_of(config).references(config, split)
    if source:
        return {source: stores[source]}, {source: references[source]} if references else {}
    return stores, references


def choose_mesh(config: Config) -> Mesh:
    """Returns the first mesh that fits the devices: the run's own, one that shards the parameters, or the default."""
    count = jax.device_count()  # the evaluator pads batches, so only the model's dimensions must be divisible
    config = replace_settings(config, {"train.batch_size": count, "train.accumulation": 1, "eval.batch_size": count})
    for sizes in (config.mesh, MeshConfig(data=1, fsdp=-1)):
        with contextlib.suppress(UserError):
            mesh = make_mesh(sizes)
            check_divisible(config, mesh)
            return mesh
    return make_mesh(MeshConfig())


def _stem(options: Options, own: Config, config: Config) -> str:
    """Returns the stem of the file names: "results", followed by each option that differs from the run's setting."""
    parts = ["results", options.config_name, "" if options.split == "valid" else options.split.replace("/", "-")]
    if options.text:
        parts = ["results", "text", re.sub(r"[*?]", "_", Path(options.text).name)]
    search, own_search = config.eval.generation, own.eval.generation
    stretches = [each.eval.batch_size if each.data.stateful else 0 for each in (config, own)]
    for name, value, usual in (
        ("stretches", *stretches),
        ("stride", config.eval.stride, own.eval.stride),
        ("average", options.average, 1),
        ("beams", search.num_beams, own_search.num_beams),
        ("penalty", search.length_penalty, own_search.length_penalty),
    ):
        parts += [f"{name}{value:g}"] if value != usual else []
    if options.mix is not None:
        weight = "" if options.mix.weight is None else f"{options.mix.weight:g}"
        parts.append(f"mix_{re.sub('[^A-Za-z0-9_.]', '_', options.mix.name)}{weight and '_'}{weight}")
    return "-".join(filter(None, parts))
