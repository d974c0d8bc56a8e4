"""Fits and evaluates models that are not trained by gradient descent, such as n-gram models."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.checks import refuse
from lm.config.experiment import replace_settings
from lm.errors import DONE, UserError
from lm.models import MODELS, build_model
from lm.models.parameters import count_parameters
from lm.reporting.metrics_writer import MetricsWriter
from lm.reporting.progress import Console, counting, duration
from lm.runs.directory import RunDirectory
from lm.runs.fingerprint import recorded_settings
from lm.runs.prepare import Prepared, cache_directory
from lm.tasks import task_of
from lm.training.report import Reporter
from lm.training.startup import describe_data, mesh_of
from lm.training.state import TrainState, abstract_state

STEP = 1  # the step of the only checkpoint


def check_fitting(config: Config, run: RunDirectory) -> None:
    """Raises UserError, before anything is built, if there are several processes or the model cannot be fitted."""
    if jax.process_count() > 1:
        raise UserError(f"model.architecture={config.model.architecture} is fitted by one process; start only one.")
    if not run.has_checkpoints():
        MODELS[config.model.architecture].check_fit(config, refuse)


def fit_model(prepared: Prepared, mesh: Mesh, run: RunDirectory, console: Console) -> int:
    """Fits the model of a run, or loads it if it has already been fitted, and evaluates it. Returns the exit status."""
    config, task = prepared.config, task_of(prepared.config)
    with Checkpoints(run.checkpoints_dir, config.checkpoint) as checkpoints:
        if done := bool(checkpoints.steps()):
            of_run = run.load_config()
            config = replace_settings(config, {"model": of_run.model})
        began = time.monotonic()
        tokens = sum(store.num_tokens for store in prepared.stores["train"].values())
        if not done:
            fit = MODELS[config.model.architecture].fit
            assert fit is not None
            (scratch := cache_directory(config)).mkdir(parents=True, exist_ok=True)
            with counting(tokens, "tokens") as report:
                fitted = fit(config, prepared.stores["train"], prepared.tokenizer, scratch, report)
            seconds = time.monotonic() - began
            config = replace_settings(config, fitted.settings)
        model = build_model(config.model, task.head(config))
        reporter = Reporter(config, dataclasses.replace(prepared, config=config), model, mesh, run, console)
        console.print(describe_data(prepared, {}, reporter.notes(), mesh_of(mesh), "float32"))
        console.banner("Model")
        abstract = abstract_state(config, model, optax.identity(), mesh)
        if done:
            state = checkpoints.restore(abstract).state
            console.print("Already done: the model was fitted earlier.")
        else:
            state = _fitted_state(fitted.params, abstract)
            for note in (*fitted.notes, f"fitted {count_parameters(state.params):,} parameters"):
                console.print(f"{note[0].upper()}{note[1:]}.")
            console.print(f"Fitting took {duration(seconds)}.")
            run.write_config(config)
            run.truncate_metrics(0)
            prepared.trained.save(run.train_hashes_path)
            values = reporter.evaluate(state, STEP)
            writer = MetricsWriter(run.metrics_path, run.tensorboard_dir, config)
            writer.write(STEP, values | {"train/seconds": seconds, "train/tokens": tokens})
            writer.close()
            metadata = {"data": prepared.fingerprint, "config": recorded_settings(config), "fitted": fitted.record}
            checkpoints.save(STEP, state, metadata, values)
            checkpoints.wait()
        console.banner("Result")
        reporter.final(state, STEP, checkpoints)
    return DONE


def _fitted_state(params: Any, abstract: TrainState) -> TrainState:
    """Returns the state of a finished run with these parameters, placed on the devices."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero + STEP, params, optax.EmptyState(), ema=None, bad_steps=zero, bad_in_row=zero)
    return jax.device_put(state, shardings)
