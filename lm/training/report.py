"""Evaluations and sample text during a run, and what it shows at its end."""

from __future__ import annotations

import time
from typing import Any

from jax.sharding import Mesh

from lm.config import Config
from lm.data.loader import eval_rows
from lm.data.prepare import Prepared
from lm.decoding.sampling import Sampling
from lm.decoding.text import sample_text
from lm.evaluation.compression import xz_bits_per_byte
from lm.evaluation.evaluators import LanguageModelling
from lm.evaluation.table import Result, print_table, write_results
from lm.models.transformer import Model
from lm.objectives.causal import features
from lm.parallel.distributed import is_first
from lm.parallel.mesh import on_mesh
from lm.run_directory import RunDirectory
from lm.training.console import Console
from lm.training.curves import draw_curves
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
        self._rows = eval_rows(config, prepared.stores["valid"], features)
        self._whole = self._evaluator(0)
        self._during = self._evaluator(config.eval.max_rows) if config.eval.max_rows else self._whole
        self._last: tuple[dict[str, float], float] | None = None  # figures of the last step, and seconds taken

    def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
        """Figures on (a part of) the validation split and, on the screen, sample text."""
        if step == self._config.train.num_steps:  # `final` shows it all
            return self._evaluate_last(state, step)[0]
        values = self._during.evaluate(_evaluated_params(state), step)
        shown = {name: values[f"valid/{name}"] for name in ("loss", "bits_per_byte") if f"valid/{name}" in values}
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in shown.items())
        self._console.print(f"step {step:,} valid: {told}")
        for prompt, text in self._samples(state):
            self._console.print(f"step {step:,} sample: {_quoted(prompt + text)}")
        return values

    def final(self, state: TrainState, step: int) -> None:
        """The metric table, sample text and the curves; the table also as files in eval/<step>/."""
        config, directory = self._config, self._directory
        values, seconds = self._evaluate_last(state, step)
        metrics = {name.removeprefix("valid/"): value for name, value in values.items()}
        if config.eval.compare_with_xz and "bits_per_byte" in metrics and is_first():
            metrics["xz_bits_per_byte"] = xz_bits_per_byte(self._prepared.stores["valid"], self._prepared.tokenizer)
        result = Result(
            run=directory.root.absolute().name,
            step=step,
            split="valid",
            metrics=metrics,
            rows=self._whole.num_rows,
            sequence_length=config.data.sequence_length,
            stride=config.eval.stride,
            seconds=seconds,
            missing=self._whole.missing,
            details={"versions": versions()},
        )
        samples = self._samples(state)
        if not is_first():
            return
        print_table([result])
        for prompt, text in samples:
            self._console.print(f"Sample{f' after {prompt!r}' if prompt else ''}:", _indented(prompt + text))
        written = write_results(directory.eval_dir(step), "results", result)
        self.draw_curves()
        self._console.print(f"\nWritten: {', '.join(str(path) for path in [*written, directory.curves_path])}")

    def _evaluate_last(self, state: TrainState, step: int) -> tuple[dict[str, float], float]:
        """Of the whole split; once, although both metrics.jsonl and the table at the end want it."""
        if self._last is None:
            began = time.monotonic()
            values = self._whole.evaluate(_evaluated_params(state), step)
            self._last = values, time.monotonic() - began
        return self._last

    def draw_curves(self) -> None:
        if is_first():
            draw_curves(self._directory.read_metrics(), self._directory.curves_path, self._directory.root.name)

    def _evaluator(self, max_rows: int) -> LanguageModelling:
        config = self._config
        return LanguageModelling(
            self._model,
            self._rows,
            config.objective,
            self._mesh,
            batch_size=config.eval.batch_size,
            max_rows=max_rows,
        )

    def _samples(self, state: TrainState) -> list[tuple[str, str]]:
        prompts = self._config.eval.prompts
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


def _quoted(text: str) -> str:
    return _printable(" ".join(text.split()))


def _indented(text: str) -> str:
    return "\n".join(f"    {_printable(line)}" for line in text.strip("\n").split("\n"))


def _printable(line: str) -> str:
    """A young model also makes control characters, which are not for a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
