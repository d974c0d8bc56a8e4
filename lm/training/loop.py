"""One training run, from a config and a directory to a trained model: a linear script in four stages."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import costs as flops
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.command import DONE, SAVED_ON_SIGNAL
from lm.data.packing.prefetch import prefetch
from lm.data.packing.rows import TrainRows
from lm.errors import UserError
from lm.models.transformer.attention_kernels import choose_backend
from lm.models.transformer.wiring import Model, build_model
from lm.parallel.distributed import barrier, is_first
from lm.parallel.mesh import batch_sharding, check_divisible, local_rows, make_mesh, to_global
from lm.reporting.console import Console
from lm.reporting.metrics_writer import LateMetrics, MetricsWriter
from lm.reporting.progress import Progress
from lm.runs.directory import RunDirectory
from lm.runs.initialisation import load_initial, source_run
from lm.runs.prepare import Prepared, prepare
from lm.tasks import task_of
from lm.training.multipliers import rate_multipliers
from lm.training.optimizer import make_optimizer
from lm.training.patience import is_exhausted
from lm.training.report import Reporter
from lm.training.schedules import schedule
from lm.training.signals import StopRequest
from lm.training.startup import describe_run, estimate_line, parameter_table
from lm.training.state import TrainState, abstract_state, make_state, with_params
from lm.training.step import compile_train_step


def train(config: Config, workdir: Path) -> int:
    """Runs or continues the experiment in `workdir`; returns the exit status. Raises UserError."""
    console = Console(enabled=is_first())
    if config.init_from and not RunDirectory(workdir).config_path.exists():
        source_run(config)  # before anything is written; a run that goes on needs it no more
    mesh = make_mesh(config.mesh)
    check_divisible(config, mesh)
    backend = choose_backend(config.model, mesh.devices.flat[0].platform)
    with ExitStack() as stack:
        console.banner("Data")
        run = stack.enter_context(RunDirectory.open(workdir, config, is_first=is_first()))
        barrier("run directory")
        prepared = prepare(config, run.root, is_first=is_first(), barrier=barrier)
        config = prepared.config
        check_divisible(config, mesh)
        if is_first():
            run.write_config(config)
        task = task_of(config)
        rows = task.train_rows(config, prepared.tokenizer, prepared.stores["train"])
        console.print(describe_run(config, prepared, rows, mesh, backend))

        console.banner("Model")
        model = build_model(config.model, task.head(config), mesh.devices.flat[0].platform)
        rates = rate_multipliers(config, model)
        optimizer = make_optimizer(config.optimizer, config.train.num_steps, rates)
        abstract = abstract_state(config, model, optimizer, mesh)
        console.print(parameter_table(abstract.params, rates))
        console.print(estimate_line(config, mesh, backend))
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints_dir, config.checkpoint))
        if checkpoints.steps():
            restored = checkpoints.restore(abstract)
            _check_same_data(restored.metadata["data"], prepared.fingerprint, run)
            state, start = restored.state, restored.step
            console.print(f"Continuing from the checkpoint of step {start:,}.")
        else:
            state, start = make_state(config, model, optimizer, abstract, mesh), 0
            if config.init_from:
                initial = load_initial(config, abstract.params)
                state = with_params(state, initial.values)
                console.print("\n".join(initial.lines))
        if is_first():
            run.truncate_metrics(start)
        barrier("metrics")

        loop = Loop(config, prepared, rows, model, mesh, run, checkpoints, console)
        end = start if loop.is_out_of_patience() else config.train.num_steps
        if start < end:
            console.banner("Training")
            began = time.monotonic()
            step = compile_train_step(config, model, optimizer, abstract, mesh)
            console.print(f"Compiled the step in {time.monotonic() - began:.1f} s.")
            state, end, signalled = loop.run(state, start, step)
            checkpoints.wait()
            if signalled:
                loop.reporter.draw_curves()
                console.print(f"Saved at step {end:,}. The same command continues from here.")
                return SAVED_ON_SIGNAL
        else:
            console.print(f"Already done: step {start:,} of {config.train.num_steps:,}.")
        if end < config.train.num_steps:
            console.print(
                f"Stopped at step {end:,}: {config.checkpoint.best_metric} was no better for "
                f"{config.train.patience} evaluations in a row (train.patience)."
            )

        console.banner("Result")
        loop.reporter.final(state, end)
        return DONE


def _check_same_data(saved: dict[str, str], found: dict[str, str], run: RunDirectory) -> None:
    changed = sorted(name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name))
    if changed:
        raise UserError(
            f"{run.root}: the data is not what this run was trained on so far; changed: {', '.join(changed)}. "
            "Put the old data back, or start in another --workdir."
        )


@dataclass
class Loop:
    """The steps of a run and what happens between them."""

    config: Config
    prepared: Prepared
    rows: TrainRows
    model: Model
    mesh: Mesh
    directory: RunDirectory
    checkpoints: Checkpoints
    console: Console

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.config, self.prepared, self.model, self.mesh, self.directory, self.console)
        metric = self.config.checkpoint.best_metric
        records = self.directory.read_metrics()
        self._measured = [math.nan if line[metric] is None else line[metric] for line in records if metric in line]
        self._seconds = max((line.get("train/seconds", 0.0) for line in records), default=0.0)

    def is_out_of_patience(self) -> bool:
        return is_exhausted(self._measured, self.config.train.patience, self.config.checkpoint.highest_is_best)

    def run(self, state: TrainState, start: int, step: jax.stages.Compiled) -> tuple[TrainState, int, bool]:
        """Runs to the end, or to an early one: returns the state, its step, and whether it was a signal's."""
        config, total = self.config, self.config.train.num_steps
        late = LateMetrics()
        with ExitStack() as stack:
            progress = stack.enter_context(self.console.progress(total, start))
            writer = self._open_writer(stack, start)
            log = _StepLog(config, self.mesh, progress, writer, self._seconds)
            request = stack.enter_context(StopRequest())
            batches = self._batches(stack, start)
            for done in range(start + 1, total + 1):
                state, metrics = step(state, next(batches))
                log.take(late.push(done, metrics))
                evaluating = done % config.eval.every_steps == 0 or done == total
                saving = done % config.checkpoint.every_steps == 0 or done == total
                stopping = done < total and bool(request.at(done))
                self.checkpoints.check()
                if not (evaluating or saving or stopping):
                    continue
                log.take(late.flush())
                with log.paused():
                    values: dict[str, float] = {}
                    if evaluating:
                        values = self.reporter.evaluate(state, done)
                        log.evaluated(done, values)
                        self._measured += [values[name] for name in (config.checkpoint.best_metric,) if name in values]
                    enough = evaluating and self.is_out_of_patience()
                    if saving or stopping or enough:
                        metadata = {"data": self.prepared.fingerprint}
                        self.checkpoints.save(done, state, metadata, values)
                if stopping or enough:
                    return state, done, stopping
        return state, total, False

    def _open_writer(self, stack: ExitStack, start: int) -> MetricsWriter | None:
        if not is_first():
            return None
        run = self.directory
        writer = MetricsWriter(
            run.metrics_path, run.tensorboard_dir, self.config.log, start_step=start, run=self.config
        )
        stack.callback(writer.close)
        return writer

    def _batches(self, stack: ExitStack, start: int) -> Iterator[Any]:
        """Global batches on the mesh, from the rows that this process has to supply."""
        config = self.config
        sharding = batch_sharding(self.mesh)
        mine = local_rows(sharding, config.train.batch_size)
        make = partial(self.rows.rows, row_ids=mine.tolist())
        data = config.data
        local = stack.enter_context(prefetch(make, start, config.train.num_steps, data.num_workers, data.prefetch))
        return (to_global(batch, mine, sharding, config.train.batch_size) for batch in local)


class _StepLog:
    """Takes each step's metrics, one step late, to the progress line, the files and the guard."""

    def __init__(
        self, config: Config, mesh: Mesh, progress: Progress, writer: MetricsWriter | None, seconds: float
    ) -> None:
        self._config, self._progress, self._writer = config, progress, writer
        self._rate = schedule(config.optimizer, config.train.num_steps)
        lengths = config.data.sequence_length, config.data.source_length
        self._step_tokens = config.train.batch_size * sum(lengths)
        device = mesh.devices.flat[0]
        peak = flops.peak_flops(device.device_kind, config.model.dtype)
        self._peak = None if peak is None else peak * mesh.size
        self._flops_per_token = flops.flops_per_row(
            config.model, *lengths, head=task_of(config).head(config)
        ).train / sum(lengths)
        self._since, self._steps = time.monotonic(), 0
        self._begin = self._since - seconds  # so many were spent on this run before

    def take(self, late: tuple[int, dict[str, float]] | None) -> None:
        """Metrics of a step that is done. Raises UserError after too many bad steps in a row."""
        if late is None:
            return
        step, metrics = late
        self._steps += 1
        bad = int(metrics.pop("bad_in_row"))
        if bad:
            self._progress.message(f"step {step:,}: loss or gradient is not finite; skipped ({bad} in a row)")
        if bad >= self._config.train.max_bad_steps:
            raise UserError(
                f"step {step}: loss or gradient was not finite for {bad} steps in a row (train.max_bad_steps); none "
                "of them changed the parameters. Lower optimizer.learning_rate, or look at the data of these steps."
            )
        if step % self._config.log.every_steps and step not in (1, self._config.train.num_steps):
            self._progress.update(step)
            return
        now = time.monotonic()
        metrics["train/learning_rate"] = float(self._rate(np.int32(step - 1)))
        speed = self._step_tokens * self._steps / max(now - self._since, 1e-9)
        metrics["train/tokens_per_second"] = speed
        share = None if self._peak is None else speed * self._flops_per_token / self._peak
        if share is not None:
            metrics["train/peak_share"] = share
        metrics["train/seconds"] = now - self._begin
        self._since, self._steps = now, 0
        if self._writer is not None:
            self._writer.write(step, metrics)
        self._progress.update(
            step,
            loss=metrics["train/loss"],
            learning_rate=metrics["train/learning_rate"],
            tokens_per_second=speed,
            peak_share=share,
        )

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(step, values | {"train/seconds": time.monotonic() - self._begin})
        self._progress.update(step, valid_loss=values.get("valid/loss"))

    def paused(self) -> _Pause:
        """Time inside the `with` does not count as training time."""
        return _Pause(self)

    def shift(self, seconds: float) -> None:
        self._since += seconds


class _Pause:
    def __init__(self, log: _StepLog) -> None:
        self._log = log

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._log.shift(time.monotonic() - self._began)
