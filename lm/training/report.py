"""Evaluations and sample text during a run, and what it shows at its end."""

from __future__ import annotations

import time
from typing import Any

from jax.sharding import Mesh

from lm.config import Config
from lm.decoding.sampling import Sampling
from lm.decoding.text import sample_text
from lm.evaluation import metric_of
from lm.evaluation.split import SplitEvaluation
from lm.models.transformer.wiring import Model
from lm.parallel.distributed import is_first
from lm.parallel.mesh import on_mesh
from lm.reporting.console import Console
from lm.reporting.curves import draw_curves
from lm.reporting.table import Result, print_table, write_results
from lm.runs.directory import RunDirectory
from lm.runs.prepare import Prepared
from lm.tasks import task_of
from lm.tasks.task import EvaluationSetup
from lm.training.startup import versions
from lm.training.state import TrainState

SAMPLING = Sampling(temperature=0.8, top_p=0.95)  # readable without being repetitive


class Reporter:
    def __init__(
        self,
        config: Config,
        prepared: Prepared,
        model: Model,
        mesh: Mesh,
        directory: RunDirectory,
        console: Console,
    ) -> None:
        self._config, self._prepared, self._model, self._mesh = config, prepared, model, mesh
        self._directory, self._console = directory, console
        self._task = task_of(config)
        self._rows = self._task.eval_rows(config, prepared.tokenizer, prepared.stores["valid"])
        self._references = self._task.references(config, "valid")
        self._whole = self._evaluation()
        limited = config.eval.max_rows or self._references
        self._during = self._evaluation(in_training=True) if limited else self._whole
        self._last: tuple[int, dict[str, float], float] | None = None  # a step, its figures, and seconds taken

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """Figures on (a part of) the validation split and, on the screen, sample text.

        They are of the same part, and by the same beams, at every step, the last too: or the best could not be told.
        """
        if self._during is self._whole:
            values = self._evaluate_whole(state, step)[0]
        else:
            values = self._during.evaluate(_evaluated_params(state), step)
        if step == self._config.train.num_steps:  # `final` shows it all
            return values
        shown = {name: values.get(f"valid/{name}") for name in self._task.console_metrics(self._config)}
        parts = [
            f"{name.replace('_', ' ')} {metric_of(name).show(value)}"
            for name, value in shown.items()
            if value is not None
        ]
        self._console.print(f"step {step:,} valid: {', '.join(parts)}")
        for prompt, text in self._samples(state):
            self._console.print(f"step {step:,} sample: {_quoted(prompt + text)}")
        for each in self._during.previews(1):
            self._console.print(f"step {step:,} output: {_in_one_line(each)}")
        return values

    def final(self, state: TrainState, step: int) -> None:
        """The metric table, sample text and the curves; the table also as files in eval/<step>/."""
        config, directory = self._config, self._directory
        values, seconds = self._evaluate_whole(state, step)
        stores, tokenizer = self._prepared.stores["valid"], self._prepared.tokenizer
        metrics = self._task.for_table(self._whole.plain(values))
        if is_first():
            metrics |= self._task.yardsticks(config, stores, tokenizer, metrics)
        windowed = self._task.windowed(config)
        result = Result(
            run=directory.root.absolute().name,
            step=step,
            split="valid",
            metrics=metrics,
            rows=self._whole.num_rows,
            sequence_length=config.data.sequence_length if windowed else None,
            stride=config.eval.stride if windowed else None,
            seconds=seconds,
            missing=self._whole.missing,
            signatures=self._whole.signatures,
            details={"versions": versions()},
        )
        samples = self._samples(state)
        if not is_first():
            return
        print_table([result])
        for prompt, text in samples:
            self._console.print(f"Sample{f' after {prompt!r}' if prompt else ''}:", _indented(prompt + text))
        for each in self._whole.previews(3):
            self._console.print(f"Output: {_in_one_line(each)}")
        written = write_results(directory.eval_dir(step), "results", result)
        written += self._whole.write(directory.eval_dir(step), "predictions")
        self.draw_curves()
        self._console.print(f"\nWritten: {', '.join(str(path) for path in [*written, directory.curves_path])}")

    def _evaluate_whole(self, state: TrainState, step: int) -> tuple[dict[str, float], float]:
        """Of the whole split; once, where both metrics.jsonl and the table at the end want it."""
        if self._last is None or self._last[0] != step:
            began = time.monotonic()
            values = self._whole.evaluate(_evaluated_params(state), step)
            self._last = step, values, time.monotonic() - began
        return self._last[1:]

    def draw_curves(self) -> None:
        if is_first():
            directory = self._directory
            draw_curves(directory.read_metrics(), directory.curves_path, directory.root.name, self._task.loss_name)

    def _evaluation(self, in_training: bool = False) -> SplitEvaluation:
        setup = EvaluationSetup(
            self._config,
            self._model,
            self._mesh,
            self._prepared.tokenizers,
            self._rows,
            self._references,
            in_training=in_training,
        )
        return self._task.evaluation(setup)

    def _samples(self, state: TrainState) -> list[tuple[str, str]]:
        prompts = self._task.sample_prompts(self._config)
        if not prompts:
            return []
        with on_mesh(self._mesh):
            texts = sample_text(
                self._model,
                _evaluated_params(state),
                self._prepared.tokenizer,
                prompts,
                SAMPLING,
                self._config.eval.sample_tokens,
                self._config.seed,
            )
        return list(zip(prompts, texts, strict=True))


def _evaluated_params(state: TrainState) -> Any:
    return state.params if state.ema is None else state.ema


def _in_one_line(texts: tuple[str, ...]) -> str:
    """Source, output and reference in a line."""
    return " | ".join(_quoted(text) for text in texts)


def _quoted(text: str) -> str:
    return _printable(" ".join(text.split()))


def _indented(text: str) -> str:
    return "\n".join(f"    {_printable(line)}" for line in text.strip("\n").split("\n"))


def _printable(line: str) -> str:
    """A young model also makes control characters, which are not for a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
