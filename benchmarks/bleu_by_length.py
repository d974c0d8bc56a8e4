"""Plots the BLEU of translations by the length of their sources, for one or more runs.

    python eval.py --workdir=runs/multi30k_lstm,runs/multi30k_lstm_none --split=test
    python -m benchmarks.bleu_by_length --workdir=runs/multi30k_lstm,runs/multi30k_lstm_none --split=test \
        --output=results/bleu_by_length.png

Reads the predictions that eval.py has written for the latest evaluated step of each run. The sources are sorted by
their number of words and cut into groups of about equal size; sources of equal length are in the same group. With a
decoder that attends to its source, BLEU hardly depends on the length (Bahdanau 2015, figure 2). A JSON file beside the
picture records the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.record import surroundings, write_record
from lm.config import command
from lm.errors import UserError
from lm.evaluation.predictions import Example, read_predictions
from lm.evaluation.text_metrics import score
from lm.files import replacing
from lm.reporting.curves import COLORS
from lm.runs.directory import RunDirectory

FLAGS = flags.FLAGS
SMALLEST = 20  # sources per group, since BLEU of a few sentences means little


def define_flags() -> None:
    flags.DEFINE_list("workdir", [], "Comma-separated run directories of encoder-decoders.")
    flags.DEFINE_string("split", "test", "The split whose predictions are read.")
    flags.DEFINE_string("stem", "", "Name of other predictions of the split, e.g. predictions-test-beams5.")
    flags.DEFINE_integer("groups", 6, "Number of groups of sources.", lower_bound=1)
    flags.DEFINE_string("note", "", "How the runs were trained, for the record.")
    command.define_path("output", "PNG file to write; the record is written beside it.")


def predictions_of(root: Path, split: str, stem: str = "") -> tuple[list[Example], str]:
    """Returns the predictions of the latest evaluated step on a split, and the run's setting for BLEU.

    The file STEM.jsonl is read. By default, it is the one that eval.py writes if no other option is given.
    """
    config = RunDirectory.existing(root).load_config()
    stem = stem or "predictions" + ("" if split == "valid" else f"-{split}")
    found = sorted(root.glob(f"eval/*/{stem}.jsonl"), key=lambda path: int(path.parent.name))
    if not found:
        advice = f"run eval.py --workdir={root} --split={split}, or name another file with --stem"
        raise UserError(f"{root}: has no {stem}.jsonl in any eval/STEP; {advice}.")
    return read_predictions(found[-1]), config.eval.generation.bleu_tokenize


def groups_of(lengths_E: np.ndarray, count: int) -> list[np.ndarray]:
    """Cuts examples into at most `count` groups of increasing length. Returns the indices of each group's examples.

    Examples of equal length are in the same group, and each group has at least SMALLEST examples if there are enough.
    """
    order_E = np.argsort(lengths_E, kind="stable")
    sorted_E, least = lengths_E[order_E], max(SMALLEST, -(-len(lengths_E) // count))
    bounds = [0]
    while bounds[-1] < len(order_E):
        end = bounds[-1] + least
        # The group ends with the last example of equal length, or takes the rest if too few would remain.
        end = int(np.searchsorted(sorted_E, sorted_E[min(end, len(order_E)) - 1], side="right"))
        bounds.append(len(order_E) if len(order_E) - end < SMALLEST else end)
    return [order_E[begin:end] for begin, end in pairwise(bounds)]


def bleu_by_length(examples: Sequence[Example], count: int, tokenize: str) -> list[dict[str, Any]]:
    """Returns, for each group, its numbers of sources and words, and the BLEU of its predictions (0 to 100)."""
    lengths_E, whole = np.array([len(each.source.split()) for each in examples]), [each.references for each in examples]
    found = []
    for group in groups_of(lengths_E, count):
        chosen = [examples[index] for index in group]
        predictions, references = [each.prediction for each in chosen], [each.references for each in chosen]
        bleu = score(("bleu",), predictions, references, bleu_tokenize=tokenize, whole=whole).metrics["bleu"]
        words = lengths_E[group]
        found.append(
            {
                "words": [int(words.min()), int(words.max())],
                "mean": float(words.mean()),
                "sources": len(group),
                "bleu": bleu,
            }
        )
    return found


def draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, groups), color in zip(curves.items(), COLORS, strict=False):
        means, scores = [each["mean"] for each in groups], [each["bleu"] for each in groups]
        axes.plot(means, scores, marker="o", color=color, label=name)
    axes.set_xlabel("words in the source (mean of each group)")
    axes.set_ylabel("BLEU")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    if not FLAGS.workdir or not FLAGS.output:
        raise UserError("--workdir and --output are needed (see --help).")
    curves, texts = {}, None
    for each in FLAGS.workdir:
        examples, tokenize = predictions_of(Path(each), FLAGS.split, FLAGS.stem)
        if texts not in (None, texts := [one.source for one in examples]):
            raise UserError(f"{each}: its predictions are for other sources than those of {FLAGS.workdir[0]}.")
        curves[Path(each).name] = bleu_by_length(examples, FLAGS.groups, tokenize)
    for name, groups in curves.items():
        shown = (f"{each['words'][0]}-{each['words'][1]} words: {each['bleu']:.1f}" for each in groups)
        print(f"{name}: {', '.join(shown)}")
    draw(curves, Path(FLAGS.output))
    record = {"note": FLAGS.note, "split": FLAGS.split, "stem": FLAGS.stem, "runs": curves, **surroundings()}
    write_record(Path(FLAGS.output).with_suffix(".json"), record)
    print(f"Written: {FLAGS.output}")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
