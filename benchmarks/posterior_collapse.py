"""Shows how the posterior of a variational autoencoder collapses unless the KL divergence is annealed (Bowman 2016).

    python -m benchmarks.posterior_collapse --runs=runs/collapse
    python -m benchmarks.posterior_collapse --runs=runs/collapse --text=FILE     another text, one sentence per line

Trains configs/autoencoder_quickstart.py twice, as it is and without annealing and free bits, and draws the KL
divergence, the cross-entropy of the restored texts and the number of active units on the validation split against the
steps. After a collapse, the divergence is 0: the decoder ignores the latent vectors and models the text alone. The
picture and its record are written to results/. A run that was interrupted continues.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.language_models import call
from benchmarks.record import RESULTS, surroundings, write_record
from lm.config import command
from lm.evaluation import metric_of
from lm.files import replacing
from lm.reporting.curves import COLORS, series
from lm.runs.directory import RunDirectory

FLAGS = flags.FLAGS
# The runs, by the names of their directories: their titles and the flags that distinguish them.
VARIANTS = {
    "annealed": ("annealing and free bits", ()),
    "collapsed": ("neither", ("--config.objective.kl_annealing_steps=0", "--config.objective.free_bits=0.0")),
}
DRAWN = ("kl", "loss", "active_units")
KEPT = (*DRAWN, "negative_elbo", "restored_tokens")


def define_flags() -> None:
    command.define_path("runs", "Directory in which each variant has its run directory.", "runs/collapse")
    command.define_path("text", "Text file to learn in place of the documentation of Python, one sentence per line.")
    command.define_path("output", "PNG file to write.", str(RESULTS / "posterior_collapse.png"))
    flags.DEFINE_list("changes", [], "Comma-separated flags of train.py for both variants.")


def train(name: str) -> RunDirectory:
    """Trains a variant, or continues its run. Returns the run directory."""
    root, text = Path(FLAGS.runs) / name, f":{FLAGS.text}" if FLAGS.text else ""
    config = f"--config=configs/autoencoder_quickstart.py{text}"
    call("train.py", config, f"--workdir={root}", *VARIANTS[name][1], *FLAGS.changes)
    return RunDirectory.existing(root)


def curves_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns the steps of the evaluations during training, and the metrics in KEPT at each of them."""
    steps, _ = series(records, "valid/kl")
    values = {name: series(records, f"valid/{name}")[1] for name in KEPT}
    return {"step": steps.tolist(), **{name: [float(f"{x:.4g}") for x in each] for name, each in values.items()}}


def draw(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draws one panel for each metric in DRAWN."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(DRAWN)), DRAWN, strict=True):
        metric = metric_of("nll" if name == "loss" else name)
        for (variant, found), color in zip(curves.items(), COLORS, strict=False):
            values = [metric.percent(each) for each in found[name]]
            axes.plot(found["step"], values, marker=".", color=color, label=VARIANTS[variant][0])
        axes.set_xlabel("step")
        axes.set_ylabel(f"{metric.heading}{' (%)' if metric.is_percentage else ''}")
        if name != "loss":
            axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.25, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    runs = {name: train(name) for name in VARIANTS}
    curves = {name: curves_of(run.read_metrics()) for name, run in runs.items()}
    final = {}
    for name, run in runs.items():
        step = curves[name]["step"][-1]
        found = json.loads((run.eval_dir(int(step)) / "results.json").read_text())
        final[name] = {"step": step, **found["metrics"]}
        shown = {"nll": found["metrics"]["nll"], **{each: found["metrics"][each] for each in KEPT if each != "loss"}}
        values = (f"{metric_of(each).heading} {metric_of(each).show(value)}" for each, value in shown.items())
        print(f"{VARIANTS[name][0]}: {', '.join(values)}")
    draw(curves, Path(FLAGS.output))
    variants = {name: {"flags": list(VARIANTS[name][1]), "final": final[name], "curves": curves[name]} for name in runs}
    record = {"text": Path(FLAGS.text).name if FLAGS.text else "embedded", "changes": FLAGS.changes, "runs": variants}
    write_record(Path(FLAGS.output).with_suffix(".json"), {**record, **surroundings()})
    print(f"Written: {FLAGS.output}")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
