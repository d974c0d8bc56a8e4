"""Runs an experiment with several seeds or data folds, and prints the results in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm.config import Config
from lm.config.command import DONE
from lm.config.experiment import LARGEST_SEED, replace_settings
from lm.errors import UserError
from lm.files import storing, write_texts
from lm.parallel.distributed import is_first
from lm.reporting.table import comma_separated, markdown, print_table, with_means
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, evaluate_run
from lm.training.loop import train


def repetitions(config: Config, seeds: Sequence[int], folds: int) -> dict[str, Config]:
    """Returns the config of each run, keyed by the name of its directory: "seed_1", "fold_0" or "seed_1_fold_0".

    Without seeds or folds, the config's seed or fold is used. Raises UserError if a number is out of range.
    """
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        given = ",".join(map(str, seeds))
        raise UserError(f"--seeds={given}: seeds must be distinct and in the range 0 to {LARGEST_SEED}.")
    if not 0 <= folds <= config.data.folds:
        raise UserError(f"--folds={folds}: the config has {config.data.folds} folds (data.folds).")
    if folds == 1:
        raise UserError("--folds=1: the number must be at least 2; to train on a single fold, set data.fold instead.")
    found: dict[str, Config] = {}
    for seed in seeds or [config.seed]:
        for fold in range(folds) if folds else [config.data.fold]:
            parts = [f"seed_{seed}"] if seeds else []
            parts += [f"fold_{fold}"] if folds else []
            found["_".join(parts)] = replace_settings(config, {"seed": seed, "data.fold": fold})
    return found


def train_all(configs: dict[str, Config], workdir: Path) -> int:
    """Trains or continues one run per config, each in a subdirectory of `workdir`, then evaluates each run.

    The results on the test split, or on the validation split if there is none, are printed with their mean and standard
    deviation, and written to results.{md,csv} in `workdir`. Returns the exit status of the first run that was stopped
    by a signal, or DONE if there is none.
    """
    if RunDirectory(workdir).config_path.exists():
        raise UserError(f"{workdir} already holds a single run; use another --workdir for --seeds and --folds.")
    for name, config in configs.items():
        if is_first():
            print(f"=== {name} ===", flush=True)
        if (status := train(config, workdir / name)) != DONE:
            return status
    split = "test" if next(iter(configs.values())).data.test else "valid"
    done = []
    for name, config in configs.items():
        done.append(evaluate_run(workdir / name, Options(split=split, cache_dir=config.data.cache_dir), name))
    if not is_first():
        return DONE
    results = with_means([each.result for each in done])
    print()
    print_table(results)
    print()
    for each in done:
        each.write()
    with storing(workdir / "results.md"):
        write_texts({workdir / "results.md": markdown(results), workdir / "results.csv": comma_separated(results)})
    print(f"written: {workdir / 'results.md'} and results.csv")
    return DONE
