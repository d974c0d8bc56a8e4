"""Trains language models of WikiText-2's words for the same time, and compares their word perplexities.

    python -m benchmarks.language_models --data=DIR --runs=runs/language_models                     all models
    python -m benchmarks.language_models --data=DIR --runs=runs/language_models --models=lstm,gru   some of them
    python -m benchmarks.language_models                                                            only the table

DIR holds the files of configs/wikitext2_words.py. Each model is trained for `--minutes` of this machine, including its
evaluations during training, with the same vocabulary and the same text. The learning rate depends on the step, so a
short run first measures the speed, and the number of steps is chosen such that they fill the time; train.max_minutes
enforces it. Then the whole validation and test splits are scored: recurrent models with one stretch of text, so that
the state is carried through all of it, the Transformer with overlapping windows, and the 5-gram with windows that give
each token its whole context. The last checkpoint is scored, since the learning rate has fallen to 0 there. The 5-gram
is counted in one pass over the text, and the mixture interpolates its probabilities with those of the Transformer, with
a weight that is tuned on the validation split; both are dashed lines in the picture.

A model that was interrupted continues. The record of each model is kept in results/language_models.json, from which the
table (.md) and the picture (.png) are made again after each model, so each model can be run in a session of its own.
Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks.record import RESULTS, surroundings, write_record
from configs import wikitext2_ngram, wikitext2_words
from lm.config import command
from lm.errors import UserError
from lm.files import replacing
from lm.models.parameters import count_parameters
from lm.reporting.curves import COLORS, SECONDS, series
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers, prepare_split

FLAGS = flags.FLAGS
ROOT = RESULTS.parent
RECORD = RESULTS / "language_models.json"
CALIBRATION_MINUTES, MARGIN = 1.5, 0.97  # MARGIN is the share of the time that the steps should fill
METRIC = "word_perplexity"
PUBLISHED = (
    ("AWD-LSTM (Merity 2018)", 68.6, 65.8, "33 M parameters, 750 epochs on a GPU; figures of the paper"),
    ("AWD-LSTM (its repository)", 68.7, 65.6, "the same model; README of salesforce/awd-lstm-lm, without fine-tuning"),
)


@dataclass(frozen=True)
class Contender:
    """A model of the comparison."""

    title: str
    config: str  # a file in configs/
    scoring: tuple[str, ...] = ()  # flags of eval.py
    changes: tuple[str, ...] = ()  # flags of train.py
    is_counted: bool = False  # whether the model is counted in one pass over the text, so that no time is set
    runs: tuple[str, ...] = ()  # the contenders whose runs are mixed; if empty, the model has a run of its own


def changes_to(config: ConfigDict, wanted: ConfigDict, prefix: str) -> Iterator[str]:
    """Yields a flag of train.py for each setting in which a config differs from the wanted one."""
    for name, value in wanted.items():
        if isinstance(value, ConfigDict):
            yield from changes_to(config[name], value, f"{prefix}.{name}")
        elif config[name] != value:
            yield f"--{prefix}.{name}={value}"


AS_WORDS = tuple(changes_to(wikitext2_ngram.get_config().data, wikitext2_words.word_data().data, "config.data"))
CARRYING, OVERLAPPING = ("--batch_size=1",), ("--stride=32",)
CONTENDERS = {
    "ngram": Contender("5-gram, Kneser-Ney", "wikitext2_ngram", changes=AS_WORDS, is_counted=True),
    "rnn": Contender("tanh RNN", "wikitext2_rnn", CARRYING),
    "gru": Contender("GRU", "wikitext2_gru", CARRYING),
    "lstm": Contender("LSTM", "wikitext2_lstm", CARRYING),
    "awd_lstm": Contender("AWD-LSTM's recipe, scaled down", "wikitext2_awd_lstm", CARRYING),
    "transformer": Contender("Transformer", "wikitext2_words", OVERLAPPING),
    "mixture": Contender(
        "Transformer mixed with the 5-gram", "wikitext2_words", OVERLAPPING, runs=("transformer", "ngram")
    ),
}


def define_flags() -> None:
    command.define_path("data", "Directory of the WikiText-2 files.")
    command.define_path("runs", "Directory in which each model has its run directory.", "runs/language_models")
    flags.DEFINE_list("models", list(CONTENDERS), f"Comma-separated models: some of {', '.join(CONTENDERS)}.")
    flags.DEFINE_float("minutes", 30.0, "Minutes of training for each model.", lower_bound=0.1)


def call(program: str, *arguments: str) -> None:
    """Runs a program of this repository and shows its output. Raises UserError if it fails."""
    line = [sys.executable, program, *arguments]
    print(f"$ {' '.join(line[1:])}", flush=True)
    if status := subprocess.run(line, cwd=ROOT).returncode:
        raise UserError(f"{program} ended with status {status}; run the same command again to continue.")


def train_flags(contender: Contender, root: Path, minutes: float = 0, num_steps: int = 0) -> list[str]:
    timed = [f"--config.train.max_minutes={minutes:g}", f"--config.train.num_steps={num_steps}"] if num_steps else []
    config = f"--config=configs/{contender.config}.py:{FLAGS.data}"
    return [config, f"--workdir={root}", "--config.log.tensorboard=False", *contender.changes, *timed]


def steps_within(records: Sequence[Mapping[str, Any]], minutes: float, eval_every: int) -> int:
    """Returns the number of steps, including evaluations, that take `minutes` at the speed of a short run.

    The records are those of metrics.jsonl. The time up to the second record is not counted, since the first steps are
    slow; the last record is that of an evaluation.
    """
    *trained, evaluated = [record for record in records if SECONDS in record]
    if len(trained) < 3:
        raise UserError("the short run took too few steps to measure the speed; increase --minutes.")
    first, last = trained[1], trained[-1]
    step_seconds = (last[SECONDS] - first[SECONDS]) / (last["step"] - first["step"])
    eval_seconds = evaluated[SECONDS] - last[SECONDS]
    return max(1, int(MARGIN * 60 * minutes / (step_seconds + eval_seconds / eval_every)))


def train(name: str, contender: Contender, runs: Path, minutes: float) -> RunDirectory:
    """Trains a model, or continues its run. Returns the run directory."""
    root = runs / name
    if contender.is_counted:
        call("train.py", *train_flags(contender, root))
        return RunDirectory.existing(root)
    if (root / "config.json").exists():
        num_steps = RunDirectory.existing(root).load_config().train.num_steps
    else:
        short = runs / f"speed_of_{name}"
        shutil.rmtree(short, ignore_errors=True)
        few = min(CALIBRATION_MINUTES, minutes / 4)
        call("train.py", *train_flags(contender, short, few, 1_000_000), "--config.log.every_steps=2")
        run = RunDirectory.existing(short)
        num_steps = steps_within(run.read_metrics(), minutes, run.load_config().eval.every_steps)
        shutil.rmtree(short)
    call("train.py", *train_flags(contender, root, minutes, num_steps))
    return RunDirectory.existing(root)


def score_of(run: RunDirectory, split: str) -> float:
    """Returns the word perplexity of the last evaluation of a split."""
    paths = sorted(run.root.glob("eval/*/results*.json"), key=lambda path: path.stat().st_mtime)
    return [found for path in paths if (found := json.loads(path.read_text()))["split"] == split][-1]["metrics"][METRIC]


def record_of(contender: Contender, run: RunDirectory) -> dict[str, Any]:
    config, records = run.load_config(), run.read_metrics()
    with run.open_checkpoints(config) as checkpoints:
        params, _ = checkpoints.restore_params()
    steps, perplexities = series(records, f"valid/{METRIC}")
    last, tokens = max(record["step"] for record in records), config.train.batch_size * config.data.sequence_length
    if contender.is_counted:
        tokens = sum(
            each.num_tokens for each in prepare_split(config, load_tokenizers(config, run.root), "train").values()
        )
    return {
        "minutes": max(record.get(SECONDS, 0.0) for record in records) / 60,
        "parameters": count_parameters(params),
        "steps": last,
        "tokens": last * tokens,
        "curve": {
            "minutes": (np.interp(steps, *series(records, SECONDS)) / 60).round(2).tolist(),
            "perplexity": perplexities.round(2).tolist(),
        },
    }


def run_contender(name: str, runs: Path, minutes: float, models: Mapping[str, Any]) -> dict[str, Any]:
    """Trains and scores a contender. Returns its record."""
    contender = CONTENDERS[name]
    if contender.runs:
        if missing := [each for each in contender.runs if each not in models]:
            raise UserError(f"--models: {name} mixes the runs of other models; run {missing[0]} first.")
        run, mixing = RunDirectory.existing(runs / contender.runs[0]), [f"--mix={runs / contender.runs[1]}"]
        parts = [models[each] for each in contender.runs]
        found = {key: sum(part[key] for part in parts) for key in ("minutes", "parameters", "steps", "tokens")}
    else:
        run, mixing = train(name, contender, runs, minutes), []
        found = record_of(contender, run)
    for split in ("valid", "test"):
        call("eval.py", f"--workdir={run.root}", f"--split={split}", "--step=latest", *contender.scoring, *mixing)
        found[split] = score_of(run, split)
    if contender.runs:
        found["curve"] = {"minutes": [found["minutes"]], "perplexity": [found["valid"]]}
    return found | surroundings()


def table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the Markdown page with the models that have been run, in the order of CONTENDERS."""
    lines = [
        "# Language models of WikiText-2 in the same time",
        "",
        "Made by `python -m benchmarks.language_models`, which explains the protocol. Word perplexity counts the ends",
        "of lines as words, as published figures do. All models share the 33,278 words of the training text.",
        "",
        "| model | valid | test | parameters | tokens read | steps | minutes | hardware | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, contender in CONTENDERS.items():
        if (found := models.get(name)) is None:
            lines.append(f"| {contender.title} | not run yet | | | | | | | |")
            continue
        sizes = f"{found['parameters'] / 1e6:.1f} M", f"{found['tokens'] / 1e6:.2f} M", f"{found['steps']:,}"
        scores = f"{found['valid']:.1f}", f"{found['test']:.1f}"
        cells = [contender.title, *scores, *sizes, f"{found['minutes']:.1f}", found["hardware"], found["commit"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Published figures, from far longer training:",
        "",
        "| model | valid | test | setting |",
        "|---|---|---|---|",
    ]
    lines += [f"| {title} | {valid} | {test} | {setting} |" for title, valid, test, setting in PUBLISHED]
    lines += [
        "",
        "![word perplexity against minutes](language_models.png)",
        "",
        "The runs were made one after another, on a virtual machine whose speed varies from hour to hour: a run in a",
        "slow hour read fewer tokens.",
        "",
        "The curves of the recurrent models are less reliable than their scores. During training, 32 stretches of",
        "the validation split are read side by side, each without a state at its start, which a network that is",
        "trained with carried states hardly ever sees. It may be caught there in a state from which it does not",
        "recover (docs/older_models.md).",
        "",
    ]
    return "\n".join(lines)


def draw(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Plots the word perplexity on about a tenth of the validation split against the minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for (name, contender), color in zip(CONTENDERS.items(), COLORS, strict=False):
        if name in models:
            curve = models[name]["curve"]
            if len(curve["perplexity"]) == 1:
                axes.axhline(curve["perplexity"][0], linestyle="--", color=color, label=contender.title)
                continue
            axes.plot(
                curve["minutes"], curve["perplexity"], marker="o", markersize=3, color=color, label=contender.title
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("{x:,g}")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("word perplexity on a tenth of the validation split")
    axes.set_xlim(left=0)
    axes.grid(True, which="both", alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def write_pages(record: dict[str, Any]) -> None:
    write_record(RECORD, record)
    RECORD.with_suffix(".md").write_text(table(record["models"]))
    draw(record["models"], RECORD.with_suffix(".png"))
    print(f"Written: {RECORD.with_suffix('.md')}, {RECORD.with_suffix('.png')}")


def main() -> int:
    if unknown := [name for name in FLAGS.models if name not in CONTENDERS]:
        raise UserError(f"--models: {unknown[0]!r} is not one of {', '.join(CONTENDERS)}.")
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {"models": {}}
    for name in FLAGS.models if FLAGS.data else ():
        record["models"][name] = run_contender(name, Path(FLAGS.runs).absolute(), FLAGS.minutes, record["models"])
        write_pages(record)
    if not FLAGS.data:
        write_pages(record)
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
