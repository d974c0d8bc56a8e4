"""Trains in the process of the tests or in another, and reads and compares what runs have written."""

import json
import resource
import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import optax

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, MeshConfig
from lm.models import build_model
from lm.parallel.mesh import make_mesh
from lm.runs.directory import RunDirectory
from lm.runs.prepare import prepare
from lm.tasks import task_of
from lm.training.loop import train
from lm.training.optimizers import make_optimizer
from lm.training.state import abstract_state, make_state

TIMING = {"train/seconds", "train/tokens_per_second", "train/peak_share"}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Makes writing beyond `size` bytes of any file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def config_of(tiny, **changes) -> Config:
    """Returns the config of an experiment of conftest.py with changes, named as for `tiny.flags`."""
    values = runpy.run_path(str(tiny.config))["get_config"](str(tiny.text))
    values.data.cache_dir = str(tiny.cache)
    values.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return Config.from_dict(values.to_dict())


def train_here(tiny, root: Path, **changes) -> int:
    """Trains or continues in this process, on eight devices; returns the exit status."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tiny.cache / "xla"))
    try:
        return train(config_of(tiny, **changes), root)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def train_apart(launch, tiny, root: Path, **changes) -> Path:
    """Trains in a process of its own, on one device; returns the run directory."""
    process = launch("train.py", *tiny.flags(root, **changes))
    assert process.wait() == 0, process.stderr
    return root


def save_untrained(root: Path, config: Config, steps: Sequence[int] = (1,)) -> None:
    """Makes a run whose checkpoints hold initial parameters. The last one is the best."""
    with RunDirectory.open(root, config) as run:
        config = prepare(config, run.root).config
        run.write_config(config)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        model, optimizer = build_model(config.model, task_of(config).head(config)), optax.sgd(0.1)
        state = make_state(config, model, optimizer, abstract_state(config, model, optimizer, mesh), mesh)
        with Checkpoints(run.checkpoints_dir, config.checkpoint) as checkpoints:
            for step in steps:
                checkpoints.save(step, state, {}, {config.checkpoint.best_metric: 1.0 / step})


def final_state(root: Path):
    """Returns the parameters, their average, the optimizer state and the counters of the last checkpoint in NumPy."""
    config = RunDirectory.existing(root).load_config()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    abstract = abstract_state(config, build_model(config.model, task_of(config).head(config)), optimizer, mesh)
    with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(abstract)
    assert restored.step == config.train.num_steps
    return jax.tree.map(np.asarray, restored.state)


def metrics(root: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without their timings, and without the last line if it is torn."""
    lines = (root / "metrics.jsonl").read_text().split("\n")[:-1] if (root / "metrics.jsonl").exists() else []
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def last_step(root: Path) -> int:
    return max((line["step"] for line in metrics(root)), default=0)


def checkpoints_of(root: Path) -> list[int]:
    return Checkpoints(root / "checkpoints", read_only=True).steps()


def assert_same_run(one: Path, two: Path) -> None:
    """Asserts that the final states and the metrics of two runs are equal to the bit."""
    states = final_state(one), final_state(two)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert metrics(one) == metrics(two)
