"""Runs an experiment: prepares the data, builds the model, trains it and reports the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.costs import peak_flops
from lm.data.packing.prefetch import GlobalBatches, prefetch
from lm.data.packing.rows import TrainRows
from lm.errors import DONE, SAVED_ON_SIGNAL, UserError
from lm.models import MODELS, build_model
from lm.models.parameters import logical_axes
from lm.models.protocol import Model
from lm.parallel.distributed import agreed_on, barrier, failing_together, is_first
from lm.parallel.mesh import check_divisible, make_mesh
from lm.parallel.signals import StopRequest
from lm.reporting.metrics_writer import LateMetrics, MetricsWriter
from lm.reporting.progress import Console, Progress
from lm.runs.directory import RunDirectory
from lm.runs.embeddings import check_vectors, load_embeddings
from lm.runs.fingerprint import recorded_settings
from lm.runs.initialisation import load_initial, source_run
from lm.runs.prepare import Prepared, check_moved, prepare
from lm.tasks import task_of
from lm.training.epochs import with_epochs
from lm.training.fitting import check_fitting, fit_model
from lm.training.multipliers import learning_rate_multipliers
from lm.training.optimizers import make_optimizer
from lm.training.report import Reporter
from lm.training.schedules import make_schedule
from lm.training.startup import describe_run, estimate_line, parameter_table
from lm.training.state import TrainState, abstract_state, make_state, with_params
from lm.training.step import compile_train_step


def train(config: Config, workdir: Path) -> int:
    """Starts or continues the run in `workdir`. Returns DONE or SAVED_ON_SIGNAL as the exit status."""
    console = Console(enabled=is_first())
    if config.init_from and not RunDirectory(workdir).config_path.exists():
        source_run(config)  # checks init_from before anything is written; a resumed run does not need it
    if config.model.embedding_from and not RunDirectory(workdir).config_path.exists():
        check_vectors(config)
    if MODELS[config.model.architecture].fit is not None:
        check_fitting(config, RunDirectory(workdir))
    mesh = make_mesh(config.mesh)
    check_divisible(config, mesh)
    platform = mesh.devices.flat[0].platform
    build_model(config.model, task_of(config).head(config), platform)  # checks the model before anything is written
    with ExitStack() as stack:
        console.banner("Data")
        run = stack.enter_context(RunDirectory.open(workdir, config, is_first=is_first()))
        barrier("run directory")
        prepared = prepare(config, run.root)
        config = prepared.config
        check_divisible(config, mesh)
        run.check_data(config, prepared.fingerprint)
        check_moved(run.moved, prepared)
        task = task_of(config)
        if MODELS[config.model.architecture].fit is not None:
            return fit_model(prepared, mesh, run, console)
        rows = task.train_rows(config, prepared.tokenizer, prepared.stores["train"])
        config = with_epochs(config, rows)
        model = build_model(config.model, task.head(config), platform)
        reporter = Reporter(config, prepared, model, mesh, run, console)
        console.print(describe_run(config, prepared, rows, reporter.notes(), mesh, model))
        for line in run.moved:
            console.print(f"The data has moved, but its contents are unchanged: {line}")

        console.banner("Model")
        multipliers = learning_rate_multipliers(config, model)
        optimizer = make_optimizer(config.optimizer, config.train.num_steps, multipliers, logical_axes(model))
        abstract = abstract_state(config, model, optimizer, mesh)
        console.print(parameter_table(abstract.params, multipliers))
        console.print(estimate_line(config, model, mesh))
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints_dir, config.checkpoint))
        stack.enter_context(failing_together())  # closing the checkpoints waits for the other processes
        if checkpoints.steps():
            restored = checkpoints.restore(abstract)
            state, start = restored.state, restored.step
            console.print(f"Continuing from the checkpoint for step {start:,}.")
        else:
            state, start = make_state(config, model, optimizer, abstract, mesh), 0
            if config.init_from:
                initial = load_initial(config, abstract.params)
                state = with_params(state, initial.values)
                console.print("\n".join(initial.lines))
            if config.model.embedding_from:
                initial = load_embeddings(config, prepared.tokenizers, state.params)
                state = with_params(state, initial.values)
                console.print("\n".join(initial.lines))
        # Includes the time of the steps after the checkpoint, which will be repeated. Without a checkpoint, it is 0.
        seconds = agreed_on(run.train_seconds()) if start else 0.0
        if is_first():  # now that all checks have passed
            run.write_config(config)
            run.truncate_metrics(start)
            if start == 0 or not run.train_hashes_path.exists():
                prepared.trained.save(run.train_hashes_path)
        barrier("metrics")

        loop = Loop(config, prepared, rows, model, mesh, run, checkpoints, console, reporter, seconds)
        end = start if loop.reason_to_stop() else config.train.num_steps
        if start < end:
            console.banner("Training")
            began = time.monotonic()
            step = compile_train_step(config, model, optimizer, abstract, mesh, rows.max_segments)
            console.print(f"Compiled the step in {time.monotonic() - began:.1f} s.")
            with StopRequest(start) as request:
                state, end = loop.run(state, start, step, request)
                checkpoints.wait()
            if request.name:
                reporter.draw_curves()
                console.print(f"Saved at step {end:,}. Run the same command to continue.")
                return SAVED_ON_SIGNAL
        else:
            console.print(f"Already done: step {start:,} of {config.train.num_steps:,}.")
        if end < config.train.num_steps:
            console.print(f"Stopped at step {end:,}: {loop.reason_to_stop()}.")

        if skipped := int(state.bad_steps):
            console.print(f"{skipped:,} of {end:,} steps were skipped: their loss or gradient was not finite.")
        reason = "the gradient was 0 in every step" if start == 0 and not loop.had_gradient else ""
        if skipped == end:
            reason = f"all {end:,} steps were skipped, because their loss or gradient was not finite"
        if reason:
            advice = "Check the labels, loss weights and optimizer.learning_rate; then start again in a new --workdir."
            raise UserError(f"{run.root}: nothing was learnt: {reason}. {advice}")

        console.banner("Result")
        reporter.final(state, end, checkpoints)
        return DONE


def is_exhausted(values: Sequence[float], patience: int, highest_is_best: bool) -> bool:
    """Returns whether none of the last `patience` evaluations improved on the best earlier evaluation.

    A value that is not finite never counts as an improvement. With a patience of 0, a run never stops early.
    """
    sign = 1.0 if highest_is_best else -1.0
    scores = [sign * value if math.isfinite(value) else -math.inf for value in values]
    return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])


@dataclass
class Loop:
    config: Config
    prepared: Prepared
    rows: TrainRows
    model: Model
    mesh: Mesh
    directory: RunDirectory
    checkpoints: Checkpoints
    console: Console
    reporter: Reporter
    seconds: float  # training time in all sessions so far

    def __post_init__(self) -> None:
        metric = self.config.checkpoint.best_metric
        records = self.directory.read_metrics()
        self._measured = [math.nan if line[metric] is None else line[metric] for line in records if metric in line]
        self._metadata = {"data": self.prepared.fingerprint, "config": recorded_settings(self.config)}
        self.had_gradient = False  # whether `run` took a step with a finite, nonzero gradient

    def reason_to_stop(self) -> str:
        """Returns why training ends before its last step, or "" if it does not."""
        train, metric = self.config.train, self.config.checkpoint.best_metric
        if is_exhausted(self._measured, train.patience, self.config.checkpoint.highest_is_best):
            return f"{metric} did not improve for {train.patience} evaluations in a row (train.patience)"
        if 0 < 60 * train.max_minutes <= self.seconds:
            return f"the run trained for {self.seconds / 60:.1f} minutes (train.max_minutes={train.max_minutes:g})"
        return ""

    def _is_out_of_time(self, step: int, began: float) -> bool:
        """Returns whether train.max_minutes have passed, with the same result in all processes.

        The time is checked only every log.every_steps steps. `began` is when an uninterrupted run would have begun.
        """
        if not self.config.train.max_minutes or step % self.config.log.every_steps:
            return False
        self.seconds = agreed_on(time.monotonic() - began)
        return 60 * self.config.train.max_minutes <= self.seconds

    def run(
        self, state: TrainState, start: int, step: jax.stages.Compiled, request: StopRequest
    ) -> tuple[TrainState, int]:
        """Trains from step `start` until the end or an early stop. Returns the final state and the last step."""
        config, total = self.config, self.config.train.num_steps
        late, began = LateMetrics(), time.monotonic() - self.seconds
        with ExitStack() as stack:
            progress = stack.enter_context(self.console.progress(total, start))
            writer = None
            if is_first():
                writer = MetricsWriter(self.directory.metrics_path, self.directory.tensorboard_dir, config, start)
                stack.callback(writer.close)
            log = _StepLog(self, progress, writer)
            global_batches = GlobalBatches(self.mesh, config.train.batch_size)
            make = partial(self.rows.rows, row_ids=global_batches.row_ids.tolist())
            local = stack.enter_context(prefetch(make, start, total, config.data.num_workers, config.data.prefetch))
            batches = map(global_batches.place, local)
            for done in range(start + 1, total + 1):
                state, metrics = step(state, next(batches))
                log.take(late.push(done, metrics))
                out_of_time = self._is_out_of_time(done, began)
                evaluating = done % config.eval.every_steps == 0 or done == total or out_of_time
                saving = done % config.checkpoint.every_steps == 0 or done == total
                stopping = done < total and bool(request.at(done))
                self.checkpoints.check()
                if not (evaluating or saving or stopping):
                    continue
                log.take(late.flush())
                with log.paused():
                    values: dict[str, float] = {}
                    if evaluating:
                        values = self.reporter.evaluate(state, done, progress.evaluating)
                        log.evaluated(done, values)
                        if config.checkpoint.best_metric in values:
                            self._measured.append(values[config.checkpoint.best_metric])
                    ending = evaluating and bool(self.reason_to_stop())
                    if saving or stopping or ending:
                        self.checkpoints.save(done, state, self._metadata, values)
                if stopping or ending:
                    return state, done
        return state, total


class _StepLog:
    """Displays and records the metrics of each step, one step late."""

    def __init__(self, loop: Loop, progress: Progress, writer: MetricsWriter | None) -> None:
        config, mesh = loop.config, loop.mesh
        self._loop, self._config, self._progress, self._writer = loop, config, progress, writer
        self._learning_rate = make_schedule(config.optimizer, config.train.num_steps)
        lengths = config.data.sequence_length, config.data.source_length
        self._step_tokens = config.train.batch_size * sum(lengths)
        peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.dtype)
        token_flops = loop.model.flops_per_row(*lengths).train / sum(lengths)
        self._peak_speed = None if peak is None else peak * mesh.size / token_flops  # tokens per second
        self._last_log, self._steps = time.monotonic(), 0
        self._began = self._last_log - loop.seconds

    def take(self, late: tuple[int, dict[str, float]] | None) -> None:
        """Logs the metrics of a finished step, if there are any. Raises UserError after too many bad steps in a row."""
        if late is None:
            return
        step, metrics = late
        self._steps += 1
        self._loop.had_gradient |= 0 < metrics["train/gradient_norm"] < math.inf
        bad = int(metrics.pop("bad_in_row"))
        if bad:
            self._progress.message(f"step {step:,}: the loss or gradient is not finite; step skipped ({bad} in a row)")
        if bad >= self._config.train.max_bad_steps:
            raise UserError(
                f"step {step}: the loss or gradient was not finite {bad} times in a row (train.max_bad_steps); none "
                "of these steps changed the parameters. Lower optimizer.learning_rate, or check the data."
            )
        if step % self._config.log.every_steps and step not in (1, self._config.train.num_steps):
            self._progress.update(step)
            return
        now = time.monotonic()
        metrics["train/learning_rate"] = float(self._learning_rate(np.int32(step - 1)))
        metrics["train/tokens_per_second"] = self._step_tokens * self._steps / max(now - self._last_log, 1e-9)
        if self._peak_speed is not None:
            metrics["train/peak_share"] = metrics["train/tokens_per_second"] / self._peak_speed
        metrics["train/seconds"] = now - self._began
        self._last_log, self._steps = now, 0
        if self._writer is not None:
            self._writer.write(step, metrics)
        shown = {name: metrics.get(f"train/{name}") for name in ("learning_rate", "tokens_per_second", "peak_share")}
        self._progress.update(step, loss=metrics["train/nll"], **shown)  # nll excludes label smoothing and z-loss

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, values | {"train/seconds": time.monotonic() - self._began})
        self._progress.update(step, valid_loss=values.get("valid/loss"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent in the `with` block from the measured training speed."""
        began = time.monotonic()
        yield
        self._last_log += time.monotonic() - began
