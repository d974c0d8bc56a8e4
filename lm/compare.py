"""Tests whether one system scores significantly better than another.

python -m lm.compare --workdir=runs/a,runs/b --metric=bleu,chrf       compares texts written by eval.py
python -m lm.compare --workdir=runs/a,runs/b --split=test             compares texts or labels for the test split
python -m lm.compare --predictions=a.jsonl,b.jsonl                    compares other files in the same format

Uses paired bootstrap resampling (Koehn 2004): for each resample, examples are drawn with replacement, and all systems
are scored on them. The p-value is the probability that chance alone would cause a difference from the first system at
least as large as the observed one. If it is below 0.05, the difference is usually called significant. All systems must
have been evaluated on the same examples.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.config import Config, GenerationConfig
from lm.config.command import DONE, define_step_flag, run
from lm.errors import UserError
from lm.evaluation import METRICS, metric_of
from lm.evaluation.intervals import resampled
from lm.evaluation.prediction_evaluator import Predictions
from lm.evaluation.predictions import Example, read_objects, read_predictions
from lm.evaluation.text_metrics import (
    TEXT_METRICS,
    CountedMetric,
    SacrebleuMetric,
    joined,
    percentages,
    reference_streams,
)
from lm.evaluation.tokenisation import Tokenisation
from lm.runs.directory import RunDirectory
from lm.runs.results import SPLITS
from lm.tasks import TASKS

FLAGS = flags.FLAGS
FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Compared:
    """The score of one system on one metric, and the distribution of this score over the resamples."""

    score: float
    mean: float
    interval: float  # half-width of the 95 % interval
    p_value: float | None  # relative to the first system; None for the first system itself


def define_flags() -> None:
    flags.DEFINE_list("workdir", [], "Comma-separated run directories. Each directory is compared with the first.")
    flags.DEFINE_list("predictions", [], f"Comma-separated files in the format of {FILE}, instead of --workdir.")
    define_step_flag()
    flags.DEFINE_string("split", "valid", "With --workdir: valid, test or train, or SPLIT/SOURCE for one data source.")
    flags.DEFINE_list(
        "metric",
        None,
        f"Comma-separated metrics: for texts, some of {', '.join(TEXT_METRICS)} (default: bleu); for labels, tags and "
        "answers, some of the metrics that eval.py prints (default: all).",
    )
    flags.DEFINE_enum(
        "bleu_tokenize",
        None,
        GenerationConfig.__dataclass_fields__["bleu_tokenize"].metadata["choices"],
        "sacrebleu's tokenisation for BLEU. The default is the setting of the first run or, with --predictions, auto.",
    )
    flags.DEFINE_integer("samples", 1000, "Number of resamples.", lower_bound=1)
    # sacrebleu treats a seed of 0 as "no seed".
    flags.DEFINE_integer("seed", 12345, "Random seed for resampling.", lower_bound=1, upper_bound=2**31 - 1)


def compare(
    metric: str, systems: Sequence[Sequence[Example]], *, bleu_tokenize: str, samples: int, seed: int
) -> tuple[dict[str, list[Compared]], str]:
    """Compares all systems on each score of a metric, e.g. on rouge1 for the metric rouge. Also returns the metric's
    signature.

    All systems must have the same references in the same order. With the same seed, sacrebleu's test and `bootstrap`
    draw the same examples. The two tests define the mean, the interval and the p-value in the same way.
    """
    scorer = TEXT_METRICS[metric]
    tokens = Tokenisation.of([each.references for each in systems[0]], bleu_tokenize)
    references = [scorer.prepared(each.references, tokens) for each in systems[0]]
    predictions = [scorer.prepared([each.prediction for each in examples], tokens) for examples in systems]
    own, caution = scorer.signature(tokens), scorer.caution(references, tokens)
    note = f" (note: {caution})" if caution else ""
    if isinstance(scorer, CountedMetric):
        counts = [scorer.counts(texts, references) for texts in predictions]
        scores = bootstrap([partial(percentages, each) for each in counts], len(references), samples, seed)
        return scores, joined(own, f"bs:{samples}", f"seed:{seed}") + note
    assert isinstance(scorer, SacrebleuMetric), metric
    from sacrebleu.significance import PairedTest

    paired: Any = PairedTest  # PairedTest accepts more types than it declares
    named = [(str(number), texts) for number, texts in enumerate(predictions)]
    scorers = {metric: scorer.scorer(tokens.bleu)}
    os.environ["SACREBLEU_SEED"] = str(seed)  # the only way to seed sacrebleu
    signatures, found = paired(named, scorers, reference_streams(references), "bs", samples)()
    ((name, signed),) = signatures.items()
    first, *others = (Compared(each.score, each.mean, each.ci, each.p_value) for each in found[name])
    others = [replace(each, p_value=1.0) if each.score == first.score else each for each in others]
    return {metric: [first, *others]}, joined(str(signed), own) + note


def bootstrap(
    systems: Sequence[Callable[[Any], Mapping[str, float]]], num_examples: int, samples: int, seed: int
) -> dict[str, list[Compared]]:
    """Applies the paired bootstrap to each score of the systems, as sacrebleu's PairedTest does.

    p = (1 + #(|resampled difference| - mean |resampled difference| > |real difference|)) / (1 + samples)

    If two scores are equal, p is set to 1, because the formula would make equal systems seem significantly different.

    Args:
        systems: for each system, a function that scores the examples with the given indices.
    """
    found = [resampled(system, num_examples, samples=samples, seed=seed) for system in systems]
    whole, cut = [system(slice(None)) for system in systems], samples // 40
    results: dict[str, list[Compared]] = {name: [] for name in found[0]}
    for name, compared in results.items():
        first = whole[0][name]
        for values_S, real in ((drawn[name], scores[name]) for drawn, scores in zip(found, whole, strict=True)):
            ordered_S, distances_S = np.sort(values_S), np.abs(values_S - found[0][name])
            extreme = int(np.sum(distances_S - distances_S.mean() > abs(real - first)))
            p_value = 1.0 if real == first else (extreme + 1) / (samples + 1)
            interval = float(ordered_S[samples - cut - 1] - ordered_S[cut]) / 2
            compared.append(Compared(real, float(values_S.mean()), interval, p_value if compared else None))
    return results


def print_comparison(
    names: Sequence[str], scores: dict[str, list[Compared]], signatures: Sequence[str], console: Console
) -> None:
    """Prints a table with one row per score and system, followed by the signatures."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("metric", "system", "score", "mean and 95% interval", "p"):
        table.add_column(name, justify="left" if name in ("metric", "system") else "right", overflow="fold")
    for score, systems in scores.items():
        for number, (name, each) in enumerate(zip(names, systems, strict=True)):
            p_value = "" if each.p_value is None else f"{each.p_value:.4f}"
            show = metric_of(score).show
            cells = ["" if number else metric_of(score).heading, name, show(each.score)]
            table.add_row(*map(Text, [*cells, f"{show(each.mean)} ± {show(each.interval)}", p_value]))
    if not console.is_terminal:  # long lines are fine in log files
        console = Console(file=console.file, width=max(console.width, 240))
    console.print(table, highlight=False)
    for signature in signatures:
        console.print("\n" + signature, highlight=False, markup=False, soft_wrap=True)


def predictions_of(root: Path, step: str, split: str = "valid") -> Path:
    """Returns the predictions file of a run at step "best", "latest" or a number. Raises UserError if it is missing."""
    directory, is_default = RunDirectory.existing(root), split == "valid"
    file = FILE if is_default else f"predictions-{split.replace('/', '-')}.jsonl"
    flag = "" if is_default else f" --split={split}"
    there = sorted(int(path.parent.name) for path in root.glob(f"eval/*/{file}") if path.parent.name.isdecimal())
    if not there:
        raise UserError(f"{root} has no eval/<step>/{file}; create it with `python eval.py --workdir={root}{flag}`.")
    if step == "best":
        with directory.open_checkpoints(directory.load_config()) as checkpoints:
            best = checkpoints.best()
        wanted = there[-1] if best is None else best
    else:
        wanted = there[-1] if step == "latest" else int(step)
    if wanted not in there:
        steps = ", ".join(map(str, there))
        raise UserError(
            f"{root} has no {file} for step {wanted}{' (best)' if step == 'best' else ''}, only for {steps}. "
            f"Choose one with --step, or run `python eval.py --workdir={root} --step={wanted}{flag}`."
        )
    return directory.eval_dir(wanted) / file


def read_system(path: Path, config: Config | None) -> Predictions | None:
    """Reads predicted labels, tags or answers. Returns None if the file holds texts.

    `config` is the config of the run, if known. Raises UserError if the file is invalid or not recognised.
    """
    lines = read_objects(path)
    _, first = lines[0]
    present = first.keys() if isinstance(first, dict) else set()
    if "source" in present:
        return None
    kinds = [task.predictions for task in TASKS.values() if task.predictions is not None]
    kind = max((each for each in kinds if present >= set(each.keys)), key=lambda each: len(each.keys), default=None)
    if kind is None:
        keys = "; ".join(["source, reference", *(", ".join(each.keys) for each in kinds)])
        raise UserError(f"{path}: its first line is not a prediction written by eval.py (keys: {keys}).")
    found = _read(kind, [line for _, line in lines], config)
    if found is None:
        number = next((number for number, line in lines if _read(kind, [line], config) is None), 1)
        problem = f"is not an object with valid {', '.join(kind.keys)}, but the first line is"
        raise UserError(f"{path}, line {number} {problem}; write the file again with eval.py.")
    return found


def _read(kind: type[Predictions], lines: Sequence[Any], config: Config | None) -> Predictions | None:
    try:
        return kind.read(lines, config)
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError):
        return None


def check_same(paths: Sequence[Path], systems: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
    """Raises UserError unless all systems agree, example by example, on the attributes listed in `names`."""
    for path, examples in zip(paths[1:], systems[1:], strict=True):
        if len(examples) != len(systems[0]):
            problem = f"{path} has {len(examples):,} examples, but {paths[0]} has {len(systems[0]):,}"
            raise UserError(f"{problem}; evaluate all systems on the same data.")
        for number, (mine, first) in enumerate(zip(examples, systems[0], strict=True), start=1):
            for name in names:
                if getattr(mine, name) != getattr(first, name):
                    problem = f"its {name.removesuffix('s')} differs from that in {paths[0]}"
                    raise UserError(f"{path}, example {number}: {problem}; evaluate all systems on the same data.")


def check_same_conventions(paths: Sequence[Path], systems: Sequence[Predictions]) -> None:
    """Raises UserError unless all systems have the same signatures, such as the tag scheme and the answer rules."""
    for path, system in zip(paths[1:], systems[1:], strict=True):
        for name, first in systems[0].signatures.items():
            if (mine := system.signatures.get(name)) != first:
                inferred = "compare systems whose predictions follow the same convention"
                if FLAGS.workdir:
                    inferred = "to infer it from the examples instead of the runs, name these files in --predictions"
                raise UserError(
                    f"the scores are not comparable: the {name} is {mine!s:.90} in one system and {first!s:.90} in "
                    f"another ({path}, {paths[0]}); {inferred}."
                )


def main() -> int:
    roots, files = [Path(each) for each in FLAGS.workdir if each], [Path(each) for each in FLAGS.predictions if each]
    if bool(roots) == bool(files) or len(roots or files) < 2:
        raise UserError("name two or more systems, with either --workdir=A,B or --predictions=A.jsonl,B.jsonl.")
    metrics = None if FLAGS.metric is None else list(dict.fromkeys(FLAGS.metric))
    for metric in [] if metrics is None else metrics or [""]:
        if metric not in {**TEXT_METRICS, **METRICS}:
            raise UserError(f"--metric={metric}: use one of {', '.join(TEXT_METRICS)}, or a metric for labels.")
    if FLAGS.split.partition("/")[0] not in SPLITS:
        raise UserError(f"--split={FLAGS.split}: use one of {', '.join(SPLITS)}, or SPLIT/SOURCE.")
    if files and FLAGS["split"].present:
        raise UserError("--split is valid only with --workdir; omit it.")
    if files and FLAGS["step"].present:
        raise UserError("--step has no effect, because --predictions names the files; omit it.")
    if FLAGS["bleu_tokenize"].present and "bleu" not in (metrics or ["bleu"]):
        raise UserError("--bleu_tokenize has no effect, because --metric does not include bleu; omit it.")
    paths = files or [predictions_of(root, FLAGS.step, FLAGS.split) for root in roots]
    configs = [RunDirectory.existing(root).load_config() for root in roots]
    known: list[Config | None] = [*configs] or [None] * len(files)
    found = [read_system(path, config) for path, config in zip(paths, known, strict=True)]
    if len({type(each) for each in found}) > 1:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names} hold predictions of different kinds; compare systems that perform the same task.")
    labelled = [each for each in found if each is not None]
    if labelled:
        count, (scores, signatures) = len(labelled[0].raw), label_scores(paths, labelled, metrics)
    else:
        default = configs[0].eval.generation.bleu_tokenize if configs else "auto"
        count, scores, signatures = text_scores(paths, metrics, FLAGS.bleu_tokenize or default)
    print(f"{count:,} examples, {FLAGS.samples:,} resamples; p-values relative to {paths[0]}\n")
    print_comparison([str(each) for each in roots or files], scores, signatures, Console())
    return DONE


def text_scores(
    paths: Sequence[Path], metrics: Sequence[str] | None, bleu_tokenize: str
) -> tuple[int, dict[str, list[Compared]], list[str]]:
    """Compares texts. Returns the number of examples, the scores and the signatures."""
    systems = [read_predictions(path) for path in paths]
    check_same(paths, systems, ("source", "references"))
    for metric in metrics or ():
        if metric not in TEXT_METRICS:
            raise UserError(f"--metric={metric} does not apply to texts; use {', '.join(TEXT_METRICS)}.")
    scores, signatures = dict[str, list[Compared]](), []
    for metric in metrics or ["bleu"]:
        found, signature = compare(metric, systems, bleu_tokenize=bleu_tokenize, samples=FLAGS.samples, seed=FLAGS.seed)
        scores |= found
        signatures.append(f"{metric}: {signature}")
    return len(systems[0]), scores, signatures


def label_scores(
    paths: Sequence[Path], systems: Sequence[Predictions], metrics: Sequence[str] | None
) -> tuple[dict[str, list[Compared]], list[str]]:
    """Compares predicted labels, tags or answers on some or all metrics. Returns the scores and the signatures."""
    examples = [each.raw for each in systems]
    check_same(paths, examples, [field.name for field in dataclasses.fields(examples[0][0])])
    check_same_conventions(paths, systems)
    values = [each.metrics() for each in systems]
    if FLAGS["bleu_tokenize"].present:
        raise UserError("--bleu_tokenize applies only to text predictions; omit it.")
    for name in metrics or ():
        if name not in values[0]:
            raise UserError(f"--metric={name}: the predictions in {paths[0]} support only {', '.join(values[0])}.")
    for path, each in zip(paths, values, strict=True):
        if each.keys() != values[0].keys() or not all(map(math.isfinite, each.values())):
            raise UserError(f"{path}: not all metrics can be computed (a score is missing or the model has diverged).")
    found = bootstrap([each.metrics for each in systems], len(examples[0]), FLAGS.samples, FLAGS.seed)
    scores = {name: found[name] for name in metrics or found}
    conventions = [f"{name}: {text}" for name, text in systems[0].signatures.items()]
    return scores, [f"{', '.join(scores)}: bs:{FLAGS.samples}|seed:{FLAGS.seed}", *conventions]


if __name__ == "__main__":
    define_flags()
    run(main)
