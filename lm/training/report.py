"""Evaluates the model and generates sample text during a run, and reports the results at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.decoding.loop import Sampler, check_fits
from lm.decoding.sampling import Sampling, vocabulary_of
from lm.decoding.text import encode_prompts, sample_many
from lm.errors import UserError
from lm.evaluation import metric_of
from lm.evaluation.evaluator import EvaluationSetup, Report, SplitEvaluation
from lm.files import storing
from lm.models.protocol import Model
from lm.parallel.distributed import is_first
from lm.parallel.mesh import on_mesh
from lm.reporting.curves import draw_curves
from lm.reporting.progress import Console, counting
from lm.reporting.table import Result, print_table, write_results
from lm.runs.directory import RunDirectory
from lm.runs.prepare import Prepared
from lm.runs.results import make_result
from lm.tasks import task_of
from lm.training.state import TrainState

SAMPLING = Sampling(temperature=0.8, top_p=0.95)  # readable without being repetitive


class Reporter:
    """Evaluates the model on the validation split, and prints and writes the results.

    Raises UserError if a prompt is too long, `checkpoint.best_metric` is not measured, or a result cannot be written.
    """

    def __init__(
        self, config: Config, prepared: Prepared, model: Model, mesh: Mesh, directory: RunDirectory, console: Console
    ) -> None:
        self._config, self._prepared, self._model, self._mesh = config, prepared, model, mesh
        self._directory, self._console = directory, console
        self._task = task_of(config)
        if prompts := self._task.sample_prompts(config):
            try:
                check_fits(encode_prompts(prepared.tokenizer, prompts), 1, config.model.max_length)
            except UserError as error:
                raise UserError(f"config.eval.prompts: {error}") from None
        self._rows = self._task.eval_rows(config, prepared.tokenizer, prepared.stores["valid"])
        self._references = self._task.references(config, "valid")
        self._whole = self._evaluation()
        limited = config.eval.max_rows or self._references
        self._during = self._evaluation(in_training=True) if limited else self._whole
        best = config.checkpoint.best_metric
        if reason := self._whole.missing.get(best.removeprefix("valid/")):
            raise UserError(f"config.checkpoint.best_metric: {best!r} is not measured ({reason}); use 'valid/loss'.")
        self._last: tuple[int, dict[str, float], float] | None = None  # step, metrics, evaluation time in seconds

    def evaluate(self, state: TrainState, step: int, report: Report | None = None) -> dict[str, float]:
        """Returns the metrics on the validation split or on its first rows. Prints some of the metrics and sample text.

        All evaluations use the same rows and the same number of beams, so their results are comparable.
        """
        params = _evaluated_params(state)
        if self._during is self._whole:
            values, _ = self._evaluate_whole(params, step, report)
        else:
            values = self._during.evaluate(params, step, report)
        best = self._config.checkpoint.best_metric
        if best and not math.isfinite(values.get(best, math.nan)):
            self._console.print(f"step {step:,}: {best} has no finite value, so this step cannot be the best.")
        if step == self._config.train.num_steps:  # `final` prints everything
            return values
        parts = [
            f"{name.replace('_', ' ')} {metric_of(name).show(value)}"
            for name in self._task.console_metrics(self._config)
            if (value := values.get(f"valid/{name}")) is not None
        ]
        lines = [f"valid: {', '.join(parts)}"]
        lines += [f"sample: {_in_one_line(prompt + text)}" for prompt, text in self._samples(params)]
        for preview in self._during.previews(1):
            lines.append(" | ".join(f"{name}: {_in_one_line(text)}" for name, text in preview.items()))
        self._console.print(*(f"step {step:,} {line}" for line in lines))
        return values

    def notes(self) -> dict[str, Sequence[str]]:
        """Returns the notes about the validation rows of each data source, e.g. how many texts are truncated."""
        return {name: each.examples.notes for name, each in self._rows.items()}

    def final(self, state: TrainState, step: int, checkpoints: Checkpoints) -> None:
        """Prints sample text and the metrics of the last and the best step.

        Also writes the results of both steps to eval/<step>/, and draws the training curves.
        """
        params, written = _evaluated_params(state), list[Path]()
        results = [self._result(params, step, written)]
        samples, previews = self._samples(params), self._whole.previews(3)
        metric, best = self._config.checkpoint.best_metric, checkpoints.best()
        if best is not None and best != step:
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
            self._console.print(f"Evaluating step {best:,}, which has the best {metric} ...")
            params, best = checkpoints.restore_params(abstract, step="best", ema=True)
            if best != step:
                results.append(self._result(params, best, written))
        if not is_first():
            return
        if len(results) > 1:
            self._console.print(f"Step {step:,} is the last; step {best:,} has the best {metric}, so eval.py and the")
            self._console.print("other commands use the best step unless --step names another.\n")
        else:
            self._console.print(f"Step {step:,} is the last{f' and has the best {metric}' if best == step else ''}.\n")
        print_table(results)
        for prompt, text in samples:
            lines = [f"    {_printable(line)}" for line in (prompt + text).strip("\n").split("\n")]
            self._console.print(f"Sample{f' after {prompt!r}' if prompt else ''}:", "\n".join(lines))
        for each in previews:
            self._console.print("\n" + "\n".join(f"{name:>10}: {_in_one_line(text)}" for name, text in each.items()))
        self.draw_curves()
        written.append(self._directory.curves_path)
        self._console.print(f"\nWritten: {', '.join(map(str, written))}")

    def _result(self, params: Any, step: int, written: list[Path]) -> Result:
        """Evaluates the whole split and writes the results. Appends the paths of the files to `written`."""
        prepared, trained = self._prepared, self._prepared.trained
        with counting(self._whole.num_rows, "rows", enabled=is_first()) as report:
            values, seconds = self._evaluate_whole(params, step, report)
        data = self._rows, values, prepared.stores["valid"], prepared.tokenizers
        labels: dict[str, Any] = {"run": self._directory.root.absolute().name, "step": step, "split": "valid"}
        result = make_result(self._config, self._whole, *data, seconds, {}, trained, **labels)
        if is_first():
            with storing(folder := self._directory.eval_dir(step)):
                written += write_results(folder, "results", result) + self._whole.write(folder, "predictions")
        return result

    def _evaluate_whole(self, params: Any, step: int, report: Report | None) -> tuple[dict[str, float], float]:
        """Returns the metrics on the whole split and the evaluation time in seconds, cached for the latest step."""
        if self._last is None or self._last[0] != step:
            began = time.monotonic()
            values = self._whole.evaluate(params, step, report)
            self._last = step, values, time.monotonic() - began
        return self._last[1:]

    def draw_curves(self) -> None:
        if is_first():
            directory, best = self._directory, self._config.checkpoint.best_metric
            with storing(path := directory.curves_path):
                draw_curves(directory.read_metrics(), path, directory.root.name, self._task.loss_name, best)

    def _evaluation(self, in_training: bool = False) -> SplitEvaluation:
        where = self._config, self._model, self._mesh, self._prepared.tokenizers
        return self._task.evaluation(EvaluationSetup(*where, self._rows, self._references, in_training=in_training))

    def _samples(self, params: Any) -> list[tuple[str, str]]:
        """Returns (prompt, continuation) for each prompt in the config."""
        config, tokenizer, prompts = self._config, self._prepared.tokenizer, self._task.sample_prompts(self._config)
        if not prompts:
            return []
        with on_mesh(self._mesh):
            ids = encode_prompts(tokenizer, prompts)
            sampler = Sampler(self._model, params, SAMPLING, vocabulary_of(tokenizer), config.eval.sample_tokens)
            samples = sample_many(sampler, tokenizer, ids, config.seed, max_rows=len(ids))
            return [(prompts[number], text) for number, _, text in samples]


def _evaluated_params(state: TrainState) -> Any:
    return state.params if state.ema is None else state.ema


def _in_one_line(text: str) -> str:
    return _printable(" ".join(text.split()))


def _printable(line: str) -> str:
    """Protects the terminal by replacing control characters, which a model may generate early in training."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
