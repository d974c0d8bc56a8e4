"""Encoder runs resume to the bit, read the same batches on any devices, and start from another run's parameters."""

import dataclasses
import os
import random
import shutil
import signal
import threading
import time
from functools import partial

import jax
import numpy as np
import pytest

import lm.training.loop
from lm.checkpoints.checkpoints import Checkpoints
from lm.errors import UserError
from lm.runs.directory import RunDirectory
from lm.runs.prepare import prepare
from lm.tasks import task_of
from lm.training.step import batch_hash
from tests.run_helpers import assert_same_run, checkpoints_of, config_of, last_step, metrics, train_here
from tests.trees import flatten

# Changes to `tiny` that make the few steps of `tiny_labels` enough.
MASKED = {
    "model__family": "encoder",
    "model__token_types": 2,
    "model__scan_layers": False,
    "objective__name": "masked",
    "objective__next_sentence": True,
    "data__tokenizer__extra_ids": 1,
    "optimizer__warmup_steps": 2,
    "train__num_steps": 16,
    "train__batch_size": 16,
    "checkpoint__every_steps": 8,
    "eval__every_steps": 8,
}
STEPS = 16


@pytest.fixture(scope="module")
def family(request, tiny_labels, tiny, tmp_path_factory):
    """An experiment, changes to it, and an uninterrupted run."""
    experiment, changes = {"labels": (tiny_labels, {}), "masked": (tiny, MASKED)}[request.param]
    root = tmp_path_factory.mktemp("straight") / "run"
    assert train_here(experiment, root, **changes) == 0
    lines = [line for line in metrics(root) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert len({line["train/batch_hash"] for line in lines}) == STEPS
    return experiment, changes, root


both = pytest.mark.parametrize(
    "family", [pytest.param("labels", marks=pytest.mark.exhaustive), "masked"], indirect=True
)
labels = pytest.mark.parametrize("family", ["labels"], indirect=True)
masked = pytest.mark.parametrize("family", ["masked"], indirect=True)


@both
@pytest.mark.exhaustive
def test_every_number_of_devices_reads_the_same_batches(family, tmp_path):
    """Rows made here, on one device, have the batch hashes that a run on eight devices has written."""
    experiment, changes, root = family
    shutil.copytree(root / "tokenizer", tmp_path / "tokenizer")
    prepared = prepare(config_of(experiment, **changes), tmp_path)
    task, size = task_of(prepared.config), prepared.config.train.batch_size
    rows = task.train_rows(prepared.config, prepared.tokenizer, prepared.stores["train"])
    written = [line["train/batch_hash"] for line in metrics(root) if "train/loss" in line]
    assert [int(jax.jit(batch_hash)(rows.rows(step, range(size)))) for step in range(STEPS)] == written


@pytest.mark.exhaustive
@labels
def test_resume_after_kill_with_labels_matches_uninterrupted_run(family, launch, tmp_path):
    """SIGKILL at a random step, with a worker that holds tokens and labels; then continues without workers."""
    experiment, changes, straight = family
    root, step = tmp_path / "run", random.Random().randint(9, STEPS - 4)
    print("killed at step", step)
    flags = experiment.flags(root, data__num_workers=1, **changes)
    process = launch("train.py", *flags, devices=8, JAX_DEFAULT_MATMUL_PRECISION="highest")  # as in this process
    process.until(lambda: last_step(root) >= step and checkpoints_of(root))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert train_here(experiment, root, **changes) == 0
    assert_same_run(straight, root)


@pytest.mark.exhaustive
@masked
def test_resume_after_signal_with_masked_tokens_matches_uninterrupted_run(family, capsys, tmp_path):
    """SIGTERM at a random step, in the middle of an epoch."""
    experiment, changes, straight = family
    root, step = tmp_path / "run", random.Random().randint(2, STEPS - 6)

    def stop() -> None:
        end = time.monotonic() + 200
        while last_step(root) < step and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # if the signal comes too late
    thread = threading.Thread(target=stop)
    try:
        thread.start()
        assert train_here(experiment, root, **changes) == 75
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    stopped = last_step(root)
    assert step <= stopped < STEPS and checkpoints_of(root)[-1] == stopped
    assert train_here(experiment, root, **changes) == 0
    assert f"Continuing from the checkpoint for step {stopped}." in capsys.readouterr().out
    assert_same_run(straight, root)


def saved_params(root, step, ema):
    directory = RunDirectory.existing(root)
    with Checkpoints(directory.checkpoints_dir, directory.load_config().checkpoint, read_only=True) as checkpoints:
        params, found = checkpoints.restore_params(None, step, ema=ema)
    return flatten(jax.tree.map(np.asarray, params)), found


@masked
@pytest.mark.exhaustive
def test_a_run_loads_the_parameters_of_another_only_at_its_start(family, tiny_labels, capsys, monkeypatch, tmp_path):
    """With a learning rate of 0 a checkpoint holds the initial parameters of the run."""
    pretrained = tmp_path / "pretrained"
    shutil.copytree(family[2], pretrained)
    root = tmp_path / "run"
    tune = partial(
        train_here,
        tiny_labels,
        root,
        init_from=str(pretrained),
        model__token_types=2,
        optimizer__learning_rate=0.0,
        optimizer__warmup_steps=1,
        train__num_steps=2,
        checkpoint__every_steps=1,
    )
    assert tune() == 0
    shown = capsys.readouterr().out
    theirs, step = saved_params(pretrained, "best", ema=True)
    assert f"initialised from {pretrained}, step {step} (moving average)" in shown
    assert "randomly initialised: classifier" in shown and "not used: " in shown
    ours, _ = saved_params(root, 1, ema=False)
    shared = ours.keys() & theirs.keys()
    assert {name.split("/")[0] for name in shared} == {"token_embedding", "type_embedding", "layer_0", "final_norm"}
    assert {name.split("/")[0] for name in ours.keys() - shared} == {"classifier"}
    for name in shared:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    for one in (root / "tokenizer").iterdir():
        assert one.read_bytes() == (pretrained / "tokenizer" / one.name).read_bytes()

    # The run continues where it stopped and no longer needs the other run.
    shutil.rmtree(root / "checkpoints" / "2")
    shutil.rmtree(pretrained)
    monkeypatch.setattr(lm.training.loop, "load_initial", lambda *_: pytest.fail("loaded again"))
    assert tune() == 0
    assert "Continuing from the checkpoint for step 1." in capsys.readouterr().out


def test_a_missing_run_to_start_from_is_refused_before_anything_is_written(tiny_labels, tmp_path):
    config = dataclasses.replace(config_of(tiny_labels), init_from=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"config\.init_from: .*elsewhere is not a run directory"):
        lm.training.loop.train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
