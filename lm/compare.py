"""Tests whether one system scores significantly better than another.

python -m lm.compare --workdir=runs/a,runs/b --metric=bleu,chrf       outputs written by eval.py
python -m lm.compare --predictions=a.jsonl,b.jsonl                    other files in the same format

Uses paired bootstrap resampling (Koehn 2004): each resample draws sources with replacement and scores all systems on
them. The p-value is the probability that chance alone causes a difference from the first system as large as the
observed one; a difference with a p-value below 0.05 is usually called significant. All systems must have read the same
sources.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.config import GenerationConfig
from lm.config.command import DONE, run
from lm.errors import UserError
from lm.evaluation import metric_of
from lm.evaluation.intervals import resamples
from lm.evaluation.predictions import Example, read_predictions
from lm.evaluation.text_metrics import TEXT_METRICS, CountedMetric, SacrebleuMetric, joined, percent, reference_streams
from lm.evaluation.tokenisation import Tokenisation
from lm.runs.directory import RunDirectory

FLAGS = flags.FLAGS
FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Compared:
    """The score of one system on one metric, and its distribution over the resamples."""

    score: float
    mean: float
    interval: float  # half-width of the 95 % interval
    p_value: float | None  # compared with the first system; None for the first itself


def define_flags() -> None:
    flags.DEFINE_list("workdir", [], "Comma-separated run directories; each is compared with the first.")
    flags.DEFINE_list("predictions", [], f"Comma-separated files in the format of {FILE}, instead of --workdir.")
    flags.DEFINE_string(
        "step", "best", "With --workdir: best (the latest if no step has the metric), latest, or a step number."
    )
    flags.DEFINE_list("metric", ["bleu"], f"Comma-separated metrics: {', '.join(TEXT_METRICS)}.")
    flags.DEFINE_enum(
        "bleu_tokenize",
        None,
        GenerationConfig.__dataclass_fields__["bleu_tokenize"].metadata["choices"],
        "sacrebleu's tokenisation for BLEU; by default as in the first run, or auto with --predictions.",
    )
    flags.DEFINE_integer("samples", 1000, "Number of resamples.", lower_bound=1)
    # sacrebleu treats a seed of 0 as "no seed".
    flags.DEFINE_integer("seed", 12345, "Random seed for resampling.", lower_bound=1, upper_bound=2**31 - 1)


def compare(
    metric: str, systems: Sequence[Sequence[Example]], *, bleu_tokenize: str, samples: int, seed: int
) -> tuple[dict[str, list[Compared]], str]:
    """Compares all systems on each score of a metric (such as rouge1 of rouge); also returns the metric's signature.

    All systems must have the same references in the same order. With the same seed, sacrebleu's test and `bootstrap`
    draw the same examples; both define mean, interval and p-value in the same way.
    """
    scorer = TEXT_METRICS[metric]
    tokens = Tokenisation.of([each.references for each in systems[0]], bleu_tokenize)
    references = [scorer.prepared(each.references, tokens) for each in systems[0]]
    predictions = [scorer.prepared([each.prediction for each in examples], tokens) for examples in systems]
    own, caution = scorer.signature(tokens), scorer.caution(references, tokens)
    note = f" (note: {caution})" if caution else ""
    if isinstance(scorer, SacrebleuMetric):
        from sacrebleu.significance import PairedTest

        paired: Any = PairedTest  # its declared types are narrower than those it accepts
        named = [(str(number), texts) for number, texts in enumerate(predictions)]
        scorers = {metric: scorer.scorer(tokens.bleu)}
        os.environ["SACREBLEU_SEED"] = str(seed)  # the only way to seed sacrebleu
        signatures, found = paired(named, scorers, reference_streams(references), "bs", samples)()
        ((name, signed),) = signatures.items()
        results = [Compared(each.score, each.mean, each.ci, each.p_value) for each in found[name]]
        return {metric: _equal_scores_differ_by_chance(results)}, joined(str(signed), own) + note
    assert isinstance(scorer, CountedMetric), metric
    counts = [scorer.counts(texts, references) for texts in predictions]
    signature = joined(own, f"bs:{samples}", f"seed:{seed}") + note
    tested = {name: bootstrap([each[name] for each in counts], samples, seed) for name in counts[0]}
    return {name: _equal_scores_differ_by_chance(each) for name, each in tested.items()}, signature


def bootstrap(counts: Sequence[np.ndarray], samples: int, seed: int) -> list[Compared]:
    """Applies the paired bootstrap to the score `percent` of each system, as sacrebleu's PairedTest does.

    p = (1 + #(|resampled difference| - mean |resampled difference| > |real difference|)) / (1 + samples)

    `counts` holds, for each system, an array (examples, 2) from `CountedMetric.counts`.
    """
    drawn = itertools.chain.from_iterable(resamples(len(counts[0]), samples, seed))
    resampled = np.array([[percent(each[indices_E]) for each in counts] for indices_E in drawn]).T
    real = [percent(each) for each in counts]
    result = []
    for number, values in enumerate(resampled):
        ordered, cut = np.sort(values), samples // 40
        interval = (ordered[samples - cut - 1] - ordered[cut]) / 2
        distances = np.abs(values - resampled[0])
        extreme = int(np.sum(distances - distances.mean() > abs(real[number] - real[0])))
        p_value = (extreme + 1) / (samples + 1) if number else None
        result.append(Compared(real[number], float(values.mean()), float(interval), p_value))
    return result


def _equal_scores_differ_by_chance(results: list[Compared]) -> list[Compared]:
    """Sets p to 1 for equal scores: the formula counts only larger differences, so a copy would seem significant."""
    first, *others = results
    return [first, *(replace(each, p_value=1.0) if each.score == first.score else each for each in others)]


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
            cells = ["" if number else metric_of(score).heading, name, f"{each.score:.2f}"]
            table.add_row(*map(Text, [*cells, f"{each.mean:.2f} ± {each.interval:.2f}", p_value]))
    if not console.is_terminal:  # long lines are fine in log files
        console = Console(file=console.file, width=max(console.width, 240))
    console.print(table, highlight=False)
    for signature in signatures:
        console.print("\n" + signature, highlight=False, markup=False, soft_wrap=True)


def predictions_of(root: Path, step: str) -> Path:
    """Returns the predictions file of a run at step "best", "latest" or a number. Raises UserError if it is missing."""
    directory = RunDirectory.existing(root)
    there = sorted(int(path.parent.name) for path in root.glob(f"eval/*/{FILE}") if path.parent.name.isdecimal())
    if not there:
        raise UserError(f"{root}: has no eval/<step>/{FILE}; create it with `python eval.py --workdir={root}`.")
    if step == "best":
        with directory.open_checkpoints(directory.load_config()) as checkpoints:
            best = checkpoints.best()
        wanted = there[-1] if best is None else best
    else:
        wanted = there[-1] if step == "latest" else int(step)
    if wanted not in there:
        steps = ", ".join(map(str, there))
        raise UserError(
            f"{root}: has no {FILE} for step {wanted}{' (best)' if step == 'best' else ''}, only for {steps}. "
            f"Choose one with --step, or run `python eval.py --workdir={root} --step={wanted}`."
        )
    return directory.eval_dir(wanted) / FILE


def check_same(paths: Sequence[Path], systems: Sequence[Sequence[Example]]) -> None:
    """Raises UserError unless all systems have the same sources and references, in the same order."""
    for path, examples in zip(paths[1:], systems[1:], strict=True):
        if len(examples) != len(systems[0]):
            raise UserError(
                f"{path}: has {len(examples):,} examples, but {paths[0]} has {len(systems[0]):,}; "
                "evaluate all systems on the same data."
            )
        for number, (mine, first) in enumerate(zip(examples, systems[0], strict=True), start=1):
            for name in ("source", "references"):
                if getattr(mine, name) != getattr(first, name):
                    raise UserError(
                        f"{path}, example {number}: its {name.removesuffix('s')} differs from that in {paths[0]}; "
                        "evaluate all systems on the same data."
                    )


def main() -> int:
    roots, files = [Path(each) for each in FLAGS.workdir if each], [Path(each) for each in FLAGS.predictions if each]
    if bool(roots) == bool(files) or len(roots or files) < 2:
        raise UserError("name two or more systems, with either --workdir=A,B or --predictions=A.jsonl,B.jsonl.")
    metrics = list(dict.fromkeys(FLAGS.metric))
    for metric in metrics or [""]:
        if metric not in TEXT_METRICS:
            raise UserError(f"--metric={metric}: must be one of {', '.join(TEXT_METRICS)}.")
    if FLAGS.step not in ("best", "latest") and not FLAGS.step.isdecimal():
        raise UserError(f"--step={FLAGS.step}: must be best, latest or a step number.")
    for flag, unused in (("bleu_tokenize", "bleu" not in metrics), ("step", bool(files))):
        if unused and FLAGS[flag].present:
            because = "--metric names no bleu" if flag == "bleu_tokenize" else "--predictions names the files"
            raise UserError(f"--{flag}: has no effect, because {because}; leave it out.")
    paths = files or [predictions_of(root, FLAGS.step) for root in roots]
    systems = [read_predictions(path) for path in paths]
    check_same(paths, systems)

    tokenize = FLAGS.bleu_tokenize
    if tokenize is None:
        tokenize = RunDirectory.existing(roots[0]).load_config().eval.generation.bleu_tokenize if roots else "auto"
    scores: dict[str, list[Compared]] = {}
    signatures = []
    for metric in metrics:
        found, signature = compare(metric, systems, bleu_tokenize=tokenize, samples=FLAGS.samples, seed=FLAGS.seed)
        scores |= found
        signatures.append(f"{metric}: {signature}")
    print(f"{len(systems[0]):,} examples, {FLAGS.samples:,} resamples; p-values relative to {paths[0]}\n")
    print_comparison([str(each) for each in roots or files], scores, signatures, Console())
    return DONE


if __name__ == "__main__":
    define_flags()
    run(main)
