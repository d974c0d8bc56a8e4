"""Evaluates checkpoints of one or more run directories and prints one table.

python eval.py --workdir=runs/quickstart                      scores the best checkpoint on the validation split
python eval.py --workdir=runs/a,runs/b --split=test           scores two runs, with one row each
python eval.py --workdir=runs/s0,runs/s1,runs/s2 --mean       adds the mean and standard deviation
python eval.py --workdir=runs/a --stride=64                   scores overlapping windows, for more context
python eval.py --workdir=runs/a --text=book.txt               scores any text with the run's own tokenizer
python eval.py --workdir=runs/a --config=configs/other.py     scores the data sources of another config
python eval.py --workdir=runs/a --split=test --average=5      averages the five latest checkpoints
python eval.py --workdir=runs/a --mix=runs/b:0.3             mixes in another run's probabilities with weight 0.3
python eval.py --workdir=runs/a --mix=runs/b --split=test    tunes the weight on the validation split
python eval.py --workdir=runs/a --baselines                   adds simple models, fitted to the training split
python eval.py --workdir=runs/a --split=test --num_beams=5    writes beam-search outputs and their references

The command needs only the run directory and the data to score (with --baselines, also the training data). It runs on
any number and kind of devices. Every token of the split is scored once. Results are written to
WORKDIR/eval/<step>/results.{json,csv,md}, and outputs to predictions.jsonl beside them. Options that differ from their
defaults (the run's own settings and the validation split) are appended to the file names, as in
results-test-beams5.json. If the directory is read-only, the table is printed with a warning, and the exit status is 0.
"""

from __future__ import annotations

from lm.parallel import signals
from lm.runs.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()
    signals.catch()  # before the other imports, which take seconds

from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from lm.config.command import (
    DONE,
    config_from_flags,
    define_config_flag,
    define_process_flags,
    define_step_flag,
    run,
)
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.runs.evaluate import Options

FLAGS = flags.FLAGS


def define_flags() -> None:
    define_config_flag()
    flags.DEFINE_list("workdir", [], "Comma-separated run directories. Each one gets a row in the table.")
    define_step_flag()
    flags.DEFINE_string("split", "valid", "valid, test or train. SPLIT/SOURCE selects a single data source.")
    flags.DEFINE_string("text", "", "Text file or glob (.gz is unpacked) to score as documents instead of a split.")
    flags.DEFINE_integer("stride", 0, "Number of tokens between window starts. If 0, the config's eval.stride is used.")
    flags.DEFINE_integer("average", 1, "Average this many checkpoints, ending with --step.")
    flags.DEFINE_string(
        "mix",
        "",
        "Run whose probabilities are mixed with those of each evaluated run: RUN:WEIGHT, or RUN to tune the weight.",
    )
    flags.DEFINE_integer("num_beams", 0, "Beam size for generated outputs. If 0, eval.generation.num_beams is used.")
    flags.DEFINE_float("length_penalty", None, "Overrides eval.generation.length_penalty.")
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Rows per batch. If 0, eval.batch_size is used. The value affects memory and speed. If data.stateful is set, "
        "it also affects the results, because it is the number of stretches into which the text is cut.",
    )
    flags.DEFINE_bool("baselines", False, "Add rows for simple models that are fitted to the run's training split.")
    flags.DEFINE_bool("mean", False, "Add two rows: the mean and the standard deviation of the runs.")
    define_process_flags()


def main() -> int:
    # Importing JAX takes seconds, so --help and flag errors are handled before the imports below.
    from lm.parallel.distributed import together

    return together(evaluate_from_flags)()


def evaluate_from_flags() -> int:
    from lm.parallel import distributed
    from lm.reporting.table import baselines_of, print_table, with_means
    from lm.runs.baselines import Baselines
    from lm.runs.compile_cache import use_compile_cache
    from lm.runs.evaluate import Options, evaluate_run
    from lm.runs.mixing import Mix

    roots = [Path(each) for each in FLAGS.workdir if each]
    if not roots:
        raise UserError("--workdir is missing; specify a run directory, e.g. --workdir=runs/quickstart.")
    config, config_name = config_from_flags(), ""
    if config is not None:  # e.g. "other" for --config=configs/other.py:ARG
        config_name = Path(config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]).stem
    names = ("step", "split", "text", "stride", "batch_size", "average", "num_beams", "length_penalty")
    values: dict[str, Any] = {each: FLAGS[each].value for each in names}
    mix = Mix.of(FLAGS.mix) if FLAGS.mix else None
    options = Options(config=config, config_name=config_name, mix=mix, **values)
    _check(options)
    if FLAGS.mean and len(roots) < 2:
        raise UserError("--mean needs two or more runs; list them in --workdir=A,B,...")
    distributed.initialize_from_flags()
    use_compile_cache(config)
    baselines = Baselines() if FLAGS.baselines else None
    done = [evaluate_run(root, options, name, baselines) for root, name in zip(roots, _names(roots), strict=True)]
    if distributed.is_first():
        print()
        results = [each.result for each in done]
        print_table([*(with_means(results) if FLAGS.mean else results), *baselines_of(results)])
        print()
        for each in done:
            each.write()
    return DONE


def _check(options: Options) -> None:
    """Raises UserError for flags that are invalid for every run directory."""
    from lm.runs.results import SPLITS

    if options.split.partition("/")[0] not in SPLITS:
        raise UserError(f"--split={options.split}: use one of {', '.join(SPLITS)}, or SPLIT/SOURCE.")
    if options.text and (options.config is not None or options.split != "valid"):
        raise UserError("--text replaces --config and --split; omit these two flags.")
    for name in ("stride", "batch_size", "num_beams"):
        if (value := getattr(options, name)) < 0:
            raise UserError(f"--{name} must be at least 1, or 0 to use the value in the config, not {value}.")
    if options.average < 1:
        raise UserError(f"--average must be at least 1, not {options.average}.")


def _names(roots: list[Path]) -> list[str]:
    """Returns the last component of each path, or the full paths if the last components are not distinct."""
    last = [root.absolute().name for root in roots]
    return last if len(set(last)) == len(roots) else [str(root) for root in roots]


if __name__ == "__main__":
    define_flags()
    run(main, outlives_output=True)
