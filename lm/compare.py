"""Whether one system's outputs are better than another's by more than chance.

python -m lm.compare --workdir=runs/a,runs/b --metric=bleu,chrf       outputs that eval.py has written
python -m lm.compare --predictions=a.jsonl,b.jsonl                    any files of this form

Paired bootstrap resampling (Koehn 2004): sources are drawn with replacement, the same for all systems. A
p-value tells how often a difference as large as the real one from the first system comes by chance alone;
below 0.05 is usually called significant. The systems must have read the same sources.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
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
from lm.evaluation.text_metrics import TEXT_METRICS, CountedMetric, SacrebleuMetric, percent, reference_streams
from lm.runs.directory import RunDirectory

FLAGS = flags.FLAGS
FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Compared:
    """One figure of one system: its score, mean and half width of the 95 % interval over resamples."""

    score: float
    mean: float
    interval: float
    p_value: float | None  # against the first system; None for that one


def define_flags() -> None:
    flags.DEFINE_list("workdir", [], "Run directories, separated by commas; all are compared with the first.")
    flags.DEFINE_list("predictions", [], f"Files such as {FILE} in place of --workdir.")
    flags.DEFINE_string("step", "best", "Of --workdir: best (the latest if none is known to be), latest, or a step.")
    flags.DEFINE_list("metric", ["bleu"], f"Of {', '.join(TEXT_METRICS)}; several separated by commas.")
    flags.DEFINE_enum(
        "bleu_tokenize",
        None,
        GenerationConfig.__dataclass_fields__["bleu_tokenize"].metadata["choices"],
        "sacrebleu's tokenisation for BLEU; if not given that of the first run, 13a for --predictions.",
    )
    flags.DEFINE_integer("samples", 1000, "Resamples.", lower_bound=1)
    # To sacrebleu a seed of 0 is none at all.
    flags.DEFINE_integer("seed", 12345, "Of the resamples.", lower_bound=1, upper_bound=2**31 - 1)


def compare(
    metric: str, systems: Sequence[Sequence[Example]], *, bleu_tokenize: str, samples: int, seed: int
) -> tuple[dict[str, list[Compared]], str]:
    """Each figure of a metric by system, and the signature.

    The examples of all systems have the same references in the same order. Both ways below draw the same
    examples for a seed, and mean, interval and p-value have the same definitions.
    """
    references = [each.references for each in systems[0]]
    predictions = [[each.prediction for each in examples] for examples in systems]
    scorer = TEXT_METRICS[metric]
    if isinstance(scorer, SacrebleuMetric):
        from sacrebleu.significance import PairedTest

        paired: Any = PairedTest  # its types are narrower than what it takes
        named = [(str(number), texts) for number, texts in enumerate(predictions)]
        scorers = {metric: scorer.scorer(bleu_tokenize)}
        with _sacrebleu_seed(seed):
            signatures, found = paired(named, scorers, reference_streams(references), "bs", samples)()
        ((name, signed),) = signatures.items()
        results = [Compared(each.score, each.mean, each.ci, each.p_value) for each in found[name]]
        return {metric: _equal_scores_differ_by_chance(results)}, str(signed)
    assert isinstance(scorer, CountedMetric), metric
    counts = [scorer.counts(texts, references) for texts in predictions]
    signature = "|".join(filter(None, (scorer.signature(), f"bs:{samples}", f"seed:{seed}")))
    figures = {name: bootstrap([each[name] for each in counts], samples, seed) for name in counts[0]}
    return {name: _equal_scores_differ_by_chance(each) for name, each in figures.items()}, signature


def bootstrap(counts: Sequence[np.ndarray], samples: int, seed: int) -> list[Compared]:
    """Paired bootstrap of the figure `percent`, with what sacrebleu's PairedTest defines.

    p = (1 + #(|difference in a resample| - their mean > |real difference|)) / (1 + samples)

    Args:
        counts: of each system (examples, 2), as `CountedMetric.counts` returns them.
    """
    drawn = itertools.chain.from_iterable(resamples(len(counts[0]), samples, seed))
    resampled = np.array([[percent(each[places_E]) for each in counts] for places_E in drawn]).T
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
    """The formula counts only larger differences, so a system would differ significantly from its own copy."""
    first, *others = results
    return [first, *(replace(each, p_value=1.0) if each.score == first.score else each for each in others)]


@contextlib.contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """sacrebleu takes its seed from the environment only."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        del os.environ["SACREBLEU_SEED"]
        if before is not None:
            os.environ["SACREBLEU_SEED"] = before


def print_comparison(
    names: Sequence[str], figures: dict[str, list[Compared]], signatures: Sequence[str], console: Console
) -> None:
    """A block for each figure with a line for each system, then the signatures."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("metric", "system", "score", "mean and 95% interval", "p"):
        table.add_column(name, justify="left" if name in ("metric", "system") else "right", overflow="fold")
    for figure, systems in figures.items():
        for number, (name, each) in enumerate(zip(names, systems, strict=True)):
            p_value = "" if each.p_value is None else f"{each.p_value:.4f}"
            cells = ["" if number else metric_of(figure).heading, name, f"{each.score:.2f}"]
            table.add_row(*map(Text, [*cells, f"{each.mean:.2f} ± {each.interval:.2f}", p_value]))
    if not console.is_terminal:  # a log file has room
        console = Console(file=console.file, width=max(console.width, 240))
    console.print(table, highlight=False)
    for signature in signatures:
        console.print("\n" + signature, highlight=False, markup=False, soft_wrap=True)


def predictions_of(root: Path, step: str) -> Path:
    """The file of a run; `step` is best, latest or a number. UserError if it is not there."""
    directory = RunDirectory.existing(root)
    there = sorted(int(path.parent.name) for path in root.glob(f"eval/*/{FILE}") if path.parent.name.isdecimal())
    if not there:
        raise UserError(f"{root}: has no eval/<step>/{FILE}; write it with `python eval.py --workdir={root}`.")
    if step == "best":
        with directory.open_checkpoints(directory.load_config()) as checkpoints:
            best = checkpoints.best()
        wanted = there[-1] if best is None else best
    else:
        wanted = there[-1] if step == "latest" else int(step)
    if wanted not in there:
        steps = ", ".join(map(str, there))
        raise UserError(
            f"{root}: has no {FILE} of step {wanted}{' (best)' if step == 'best' else ''}; it has those of {steps}. "
            f"Name one with --step, or run `python eval.py --workdir={root} --step={wanted}`."
        )
    return directory.eval_dir(wanted) / FILE


def check_same(paths: Sequence[Path], systems: Sequence[Sequence[Example]]) -> None:
    """UserError unless all systems have the same sources and references, in the same order."""
    for path, examples in zip(paths[1:], systems[1:], strict=True):
        if len(examples) != len(systems[0]):
            raise UserError(
                f"{path}: has {len(examples):,} examples and {paths[0]} has {len(systems[0]):,}; "
                "evaluate all systems on the same data."
            )
        for number, (mine, first) in enumerate(zip(examples, systems[0], strict=True), start=1):
            for what in ("source", "references"):
                if getattr(mine, what) != getattr(first, what):
                    raise UserError(
                        f"{path}, example {number}: its {what.removesuffix('s')} is not that of {paths[0]}; "
                        "evaluate all systems on the same data."
                    )


def main() -> int:
    roots, files = [Path(each) for each in FLAGS.workdir if each], [Path(each) for each in FLAGS.predictions if each]
    if bool(roots) == bool(files) or len(roots or files) < 2:
        raise UserError("name two or more systems, either --workdir=A,B or --predictions=A.jsonl,B.jsonl.")
    metrics = list(dict.fromkeys(FLAGS.metric))
    for metric in metrics or [""]:
        if metric not in TEXT_METRICS:
            raise UserError(f"--metric={metric}: must be of {', '.join(TEXT_METRICS)}.")
    if FLAGS.step not in ("best", "latest") and not FLAGS.step.isdecimal():
        raise UserError(f"--step={FLAGS.step}: must be best, latest or the number of a step.")
    paths = files or [predictions_of(root, FLAGS.step) for root in roots]
    systems = [read_predictions(path) for path in paths]
    check_same(paths, systems)

    tokenize = FLAGS.bleu_tokenize
    if tokenize is None:
        tokenize = RunDirectory.existing(roots[0]).load_config().eval.generation.bleu_tokenize if roots else "13a"
    figures: dict[str, list[Compared]] = {}
    signatures = []
    for metric in metrics:
        found, signature = compare(metric, systems, bleu_tokenize=tokenize, samples=FLAGS.samples, seed=FLAGS.seed)
        figures |= found
        signatures.append(f"{metric}: {signature}")
    print(f"{len(systems[0]):,} examples, {FLAGS.samples:,} resamples; p against {paths[0]}\n")
    print_comparison([str(each) for each in roots or files], figures, signatures, Console())
    return DONE


if __name__ == "__main__":
    define_flags()
    run(main)
