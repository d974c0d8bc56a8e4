"""Scores checkpoints of run directories and prints one table.

python eval.py --workdir=runs/quickstart                      its validation split, best checkpoint
python eval.py --workdir=runs/a,runs/b --split=test           two runs, a row each
python eval.py --workdir=runs/a --stride=64                   windows that overlap: more context for each token
python eval.py --workdir=runs/a --text=book.txt               any text, with the run's own tokenizer
python eval.py --workdir=runs/a --config=configs/other.py     the data of another config

A run directory is all that is needed; the number and kind of devices may be another than in training.
Every token of the split is scored once. Results go to WORKDIR/eval/<step>/results.{json,csv,md}; those
of anything but the run's own validation split and stride to results-<what>.{json,csv,md} beside it,
where <what> names the config or text, the split and the stride. If they cannot be written (a read-only
directory) the table is still printed, with a warning, and the exit status is 0.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from lm.checkpoint import Checkpoints
from lm.command import DONE, config_from_flags, define_config_flag, run
from lm.config import Config, MeshConfig, ModelConfig, SourceConfig
from lm.data.loader import eval_rows
from lm.data.prepare import cache_directory, prepare_split
from lm.data.token_store import TokenStore
from lm.data.tokenizers import Tokenizer, load_tokenizer
from lm.errors import UserError
from lm.evaluation.compression import xz_bits_per_byte
from lm.evaluation.evaluators import LanguageModelling
from lm.evaluation.table import Result, print_table, write_results
from lm.models.transformer import build_model
from lm.objectives.causal import features
from lm.parallel import distributed
from lm.parallel.distributed import barrier, is_first
from lm.parallel.mesh import check_divisible, make_mesh
from lm.run_directory import RunDirectory
from lm.schema import differences
from lm.training.startup import versions
from lm.training.state import abstract_state

FLAGS = flags.FLAGS
SPLITS = ("valid", "test", "train")
# Model settings that another config may have otherwise: they do not change what the parameters compute.
UNIMPORTANT = (
    "attention",
    "attention_dropout",
    "dropout",
    "init_residual_scaling",
    "init_std",
    "max_length",
    "remat",
    "scan_layers",
    "vocab_multiple",
)


@dataclass(frozen=True)
class Options:
    """What to evaluate, the same for all runs."""

    step: str = "best"  # best, latest, or a number
    split: str = "valid"  # valid, test or train; with /SOURCE only that source of it
    text: str = ""  # a text file or glob, in place of the run's data
    config: Config | None = None  # its data in place of the run's
    config_name: str = ""
    stride: int = 0  # 0 for the config's
    batch_size: int = 0  # 0 for the config's


@dataclass(frozen=True)
class Evaluated:
    result: Result
    directory: Path  # where its files belong
    stem: str  # and how they are called


def define_flags() -> None:
    define_config_flag()
    flags.DEFINE_list("workdir", [], "Run directory; several, separated by commas, are rows of one table.")
    flags.DEFINE_string(
        "step", "best", "best (the latest if none is known to be), latest, or the step of a checkpoint."
    )
    flags.DEFINE_string("split", "valid", "valid, test or train; SPLIT/SOURCE for one source of it.")
    flags.DEFINE_string("text", "", "Score this text file or glob (.gz is unpacked; a file is a document).")
    flags.DEFINE_integer("stride", 0, "Tokens by which windows advance; 0 for eval.stride of the config.")
    flags.DEFINE_integer("batch_size", 0, "Rows at a time; 0 for eval.batch_size. Changes memory and speed only.")
    distributed.define_flags()


def evaluate_run(root: Path, options: Options, name: str = "") -> Evaluated:
    """Scores one checkpoint of one run; `name` is what the table calls it. Raises UserError for bad input."""
    directory = RunDirectory.existing(root)
    own = directory.load_config()
    tokenizer = load_tokenizer(directory.tokenizer_dir)
    config = _evaluation_config(root, own, options)
    stores = _open_stores(config, tokenizer, options)

    model = build_model(config.model)
    mesh = _choose_mesh(config)
    abstract = abstract_state(config, model, optax.identity(), mesh).params
    average = config.optimizer.ema_decay > 0
    with Checkpoints(directory.checkpoints_dir, config.checkpoint, read_only=True) as checkpoints:
        params, step = checkpoints.restore_params(abstract, _step(options.step), ema=average)
        best = checkpoints.best()

    rows = eval_rows(config, stores, features)
    evaluator = LanguageModelling(
        model,
        rows,
        config.objective,
        mesh,
        name=options.split,
        batch_size=config.eval.batch_size,
        report=_report if is_first() and sys.stderr.isatty() else None,
    )
    devices = f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"
    tokens = sum(each.totals["targets"] for each in rows.values())
    length, stride = config.data.sequence_length, config.eval.stride
    split = f"text {Path(options.text).name}" if options.text else options.split
    _say(
        f"{name or root}: step {step:,}{' (best)' if step == best else ''}, {split}, {tokens:,} tokens in "
        f"{evaluator.num_rows:,} windows of {length}, stride {stride}, on {devices}"
    )
    began = time.monotonic()
    metrics = evaluator.evaluate(params, step)
    seconds = time.monotonic() - began
    metrics = {figure.removeprefix(f"{options.split}/"): value for figure, value in metrics.items()}
    if config.eval.compare_with_xz and "bits_per_byte" in metrics and is_first():
        metrics["xz_bits_per_byte"] = xz_bits_per_byte(stores, tokenizer)
    result = Result(
        run=name or str(root),
        step=step,
        split=split,
        metrics=metrics,
        rows=evaluator.num_rows,
        sequence_length=length,
        stride=stride,
        seconds=seconds,
        missing=evaluator.missing,
        details={
            "parameters": "average" if average else "trained",
            "config": options.config_name or "config.json of the run",
            "data": {source: {"hash": each.fingerprint, **each.manifest["counts"]} for source, each in stores.items()},
            "devices": devices,
            "dtype": config.model.dtype,
            "batch_size": evaluator.batch_size,
            "versions": versions(),
        },
    )
    return Evaluated(result, directory.eval_dir(step), _stem(options, own, config))


def main() -> int:
    roots = [Path(each) for each in FLAGS.workdir if each]
    if not roots:
        raise UserError("--workdir is missing; name a run directory, e.g. --workdir=runs/quickstart.")
    config = config_from_flags()
    options = Options(
        step=FLAGS.step,
        split=FLAGS.split,
        text=FLAGS.text,
        config=config,
        config_name="" if config is None else _config_name(),
        stride=FLAGS.stride,
        batch_size=FLAGS.batch_size,
    )
    _check(options)
    distributed.initialize_from_flags()
    cache = cache_directory(RunDirectory.existing(roots[0]).load_config())
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    done = [evaluate_run(root, options, name) for root, name in zip(roots, _names(roots), strict=True)]
    if is_first():
        print()
        print_table([each.result for each in done])
        print()
        for each in done:
            try:
                paths = write_results(each.directory, each.stem, each.result)
            except OSError as error:
                reason = error.strerror or error
                print(f"warning: results could not be written to {each.directory} ({reason}).", file=sys.stderr)
            else:
                print(f"written: {paths[0]}, {', '.join(path.suffix for path in paths[1:])}")
    return DONE


def _check(options: Options) -> None:
    """What can be told before anything is read."""
    if options.step not in ("best", "latest") and not options.step.isdecimal():
        raise UserError(f"--step={options.step}: must be best, latest or the number of a step.")
    if options.split.partition("/")[0] not in SPLITS:
        raise UserError(f"--split={options.split}: must be one of {', '.join(SPLITS)}, or SPLIT/SOURCE.")
    if options.text and (options.config is not None or options.split != "valid"):
        raise UserError("--text: takes the place of --config and --split; leave those out.")
    for name, value in (("stride", options.stride), ("batch_size", options.batch_size)):
        if value < 0:
            raise UserError(f"--{name}={value}: must be at least 1 (or 0 for the config's).")


def _evaluation_config(root: Path, own: Config, options: Options) -> Config:
    """The run's config with the data and evaluation settings asked for, checked as a whole."""
    values = own.to_dict()
    if options.config is not None:
        other = options.config.to_dict()
        if other["model"]["vocab_size"] == 0:  # not known before a tokenizer is
            other["model"]["vocab_size"] = own.model.vocab_size
        lines = differences(_important(values["model"]), _important(other["model"]), "model.")
        if lines:
            raise UserError(
                f"--config={options.config_name}: its model is not that of {root} ({'; '.join(lines)}); "
                "use a config with the same model, or override these settings."
            )
        values |= {"data": other["data"], "eval": other["eval"]}
    if options.text:
        values["data"]["test"] = {"text": dataclasses.asdict(SourceConfig(kind="text", path=options.text))}
    if options.stride:
        values["eval"]["stride"] = options.stride
    if options.batch_size:
        values["eval"]["batch_size"] = options.batch_size
    config = Config.from_dict(values)
    # Dropout and remat play no part here, and a kernel chosen for the chip of the training may not run on this one.
    attention = "xla" if config.model.attention == "xla" else "auto"
    model = dataclasses.replace(config.model, attention=attention, attention_dropout=0.0, dropout=0.0, remat="none")
    return dataclasses.replace(config, model=model)


def _important(model: dict[str, Any]) -> dict[str, Any]:
    assert set(UNIMPORTANT) < {each.name for each in dataclasses.fields(ModelConfig)}
    return {name: value for name, value in model.items() if name not in UNIMPORTANT}


def _open_stores(config: Config, tokenizer: Tokenizer, options: Options) -> dict[str, TokenStore]:
    """Stores of the split, or of one source of it."""
    split, _, source = ("test", "", "") if options.text else options.split.partition("/")
    stores = prepare_split(config, tokenizer, split, is_first=is_first(), barrier=barrier)
    if source and source not in stores:
        raise UserError(f"--split={options.split}: {split} has no source {source!r}; it has {', '.join(stores)}.")
    return {source: stores[source]} if source else stores


def _choose_mesh(config: Config) -> Mesh:
    """The run's own mesh if it fits the devices here; else parameters split over all; else a copy on each."""
    count = jax.device_count()
    # The evaluator pads its batches, so that only the model has to be divisible.
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=count, accumulation=1),
        eval=dataclasses.replace(config.eval, batch_size=count),
    )
    for sizes in (config.mesh, MeshConfig(data=1, fsdp=-1)):
        try:
            mesh = make_mesh(sizes)
            check_divisible(config, mesh)
        except UserError:
            continue
        return mesh
    return make_mesh(MeshConfig())


def _step(text: str) -> Any:
    return {"best": "best", "latest": None}[text] if text in ("best", "latest") else int(text)


def _stem(options: Options, own: Config, config: Config) -> str:
    """`results` for the run's own validation split and stride; everything else has its own name."""
    parts = ["results"]
    if options.text:
        parts += ["text", Path(options.text).name.replace("*", "_").replace("?", "_")]
    else:
        parts += [options.config_name] if options.config_name else []
        parts += [options.split.replace("/", "-")] if options.split != "valid" else []
    if config.eval.stride != own.eval.stride:
        parts.append(f"stride{config.eval.stride}")
    return "-".join(parts)


def _names(roots: list[Path]) -> list[str]:
    """Last part of each path, or the whole where that would not tell them apart."""
    last = [root.absolute().name for root in roots]
    return last if len(set(last)) == len(roots) else [str(root) for root in roots]


def _config_name() -> str:
    """`other` for --config=configs/other.py:ARG."""
    return Path(config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]).stem


def _report(done: int, total: int) -> None:
    """On a terminal only: a long evaluation shows how far it is."""
    end = "\r\x1b[K" if done == total else ""
    print(f"\r  {done:,} of {total:,} windows", end=end, file=sys.stderr, flush=True)


def _say(text: str) -> None:
    if is_first():
        print(text, flush=True)


if __name__ == "__main__":
    define_flags()
    run(main)
