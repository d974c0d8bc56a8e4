"""A run that was stopped, killed, moved or damaged ends as if nothing had happened, or says why it cannot."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from lm.checkpoints.keeping import TORN
from tests.run_helpers import assert_same_run, checkpoints_of, last_step, metrics, train_here

STEPS = 40
# Changes to `tiny`. Pairs need no case of their own: their rows are made like those of spans, without random draws.
FAMILIES = {
    "decoder": {},
    "span_corruption": {
        "model__family": "encoder_decoder",
        "objective__name": "span_corruption",
        "data__tokenizer__extra_ids": 20,
        "data__source_length": 48,
        "objective__label_smoothing": 0.1,
        "train__batch_size": 16,
    },
}


def killed_after(straight: Path, root: Path, step: int) -> Path:
    """Copies to `root` what the straight run would have left if killed shortly after the checkpoint of `step`."""
    shutil.copytree(straight, root)
    for each in checkpoints_of(root):
        if each > step:
            shutil.rmtree(root / "checkpoints" / str(each))
    lines = (root / "metrics.jsonl").read_text().splitlines(keepends=True)
    later = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == step + 2)
    (root / "metrics.jsonl").write_text("".join(lines[:later]) + lines[later][:20])
    return root


def undisturbed(launch, flags: list[str], root: Path) -> Path:
    process = launch("train.py", *flags)
    assert process.wait() == 0, process.stderr
    trained = [line for line in metrics(root) if "train/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert len({line["train/batch_hash"] for line in trained}) == STEPS
    return root


@pytest.fixture(scope="module")
def straight(tiny, launch, tmp_path_factory) -> Path:
    """A run from start to end without interruption."""
    root = tmp_path_factory.mktemp("straight") / "run"
    return undisturbed(launch, tiny.flags(root), root)


@dataclass(frozen=True)
class Family:
    flags: Callable[..., list[str]]  # of train.py, for a run directory
    straight: Path  # the uninterrupted run


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tiny, launch, tmp_path_factory) -> Family:
    """An experiment with dropout, and with masks that are drawn again in the second epoch."""
    flags = partial(tiny.flags, **FAMILIES[request.param])
    if request.param == "decoder":
        return Family(flags, request.getfixturevalue("straight"))
    root = tmp_path_factory.mktemp(request.param) / "run"
    return Family(flags, undisturbed(launch, flags(root), root))


def test_resume_after_kills_and_signals_matches_uninterrupted_run(tiny, launch, straight, tmp_path):
    """SIGKILL at a random step, with workers; while a checkpoint is written; then SIGTERM and SIGINT, which save."""
    root, first = tmp_path / "run", random.Random().randint(1, 7)
    print("killed at step", first)
    elsewhere = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    for folder in elsewhere.values():
        folder.mkdir()

    def torn() -> bool:
        return root.joinpath("checkpoints").exists() and any(TORN in name for name in os.listdir(root / "checkpoints"))

    def writing() -> bool:
        """Returns whether a checkpoint is being written; if so, the process is stopped at that point."""
        if last_step(root) <= 10 or not torn():
            return False
        process.send(signal.SIGSTOP)
        if torn():
            return True
        process.send(signal.SIGCONT)
        return False

    for moment, workers in ((lambda: last_step(root) >= first, 2), (writing, 0)):
        flags = tiny.flags(root, data__num_workers=workers, log__tensorboard=True)
        process = launch("train.py", *flags, **elsewhere)
        process.until(moment)
        assert len(process.family()) > workers
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        end = time.monotonic() + 20
        while process.family():
            assert time.monotonic() < end, f"still there: {process.family()}"
            time.sleep(0.1)
    for number, step in ((signal.SIGTERM, 20), (signal.SIGINT, 30)):
        process = launch("train.py", *tiny.flags(root), **elsewhere)
        process.until(lambda step=step: last_step(root) >= step)
        process.send(number)
        assert process.wait() == 75, process.stderr
        stopped = last_step(root)
        assert step <= stopped < STEPS and checkpoints_of(root)[-1] == stopped
        assert f"Saved at step {stopped}." in process.stdout and number.name in process.stderr
    process = launch("train.py", *tiny.flags(root), **elsewhere)
    assert process.wait() == 0, process.stderr
    assert f"Continuing from the checkpoint for step {stopped}." in process.stdout
    assert not torn()
    assert_same_run(straight, root)
    assert [list(folder.rglob("*")) for folder in elsewhere.values()] == [[]] * len(elsewhere)
    assert sorted(os.listdir(process.folder)) == ["stderr", "stdout"], "the working directory"


def test_a_finished_run_is_left_unchanged(tiny, launch, straight):
    before = {path: path.read_bytes() for path in straight.glob("**/*") if path.is_file() and path.suffix != ".png"}
    process = launch("train.py", *tiny.flags(straight))
    assert process.wait() == 0
    assert f"Already done: step {STEPS} of {STEPS}." in process.stdout and "Compiled" not in process.stdout
    for path, content in before.items():
        if path.name not in (".lock", "results.json"):  # hold the process id and the seconds taken
            assert path.read_bytes() == content, path


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["span_corruption"], indirect=True)
def test_resume_after_kill_with_sources_matches_uninterrupted_run(family, launch, tmp_path):
    """SIGKILL at a random step, with a worker that holds sources and masks; then continues without workers."""
    root, step = tmp_path / "run", random.Random().randint(9, 32)
    print("killed at step", step)
    process = launch("train.py", *family.flags(root, data__num_workers=1))
    process.until(lambda: last_step(root) >= step and checkpoints_of(root))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process = launch("train.py", *family.flags(root))
    assert process.wait() == 0, process.stderr
    assert "Continuing from the checkpoint for step" in process.stdout
    assert_same_run(family.straight, root)


@pytest.mark.exhaustive
def test_resume_on_eight_devices_matches_uninterrupted_run_with_muon(tiny, tmp_path):
    """Unlike the parameters, Muon's momentum is split over data-parallel devices."""
    changes = {"optimizer__name": "muon", "model__num_layers": 3}
    assert train_here(tiny, tmp_path / "straight", **changes) == 0
    root = killed_after(tmp_path / "straight", tmp_path / "run", 16)
    assert train_here(tiny, root, **changes) == 0
    assert_same_run(tmp_path / "straight", root)


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["decoder"], indirect=True)
def test_moving_from_one_device_to_eight_and_back_keeps_batches_and_losses(family, launch, tmp_path):
    root = killed_after(family.straight, tmp_path / "run", 8)
    process = launch("train.py", *family.flags(root), devices=8)
    process.until(lambda: last_step(root) >= 12)
    process.send(signal.SIGTERM)
    assert process.wait() == 75, process.stderr
    assert "8 x cpu" in process.stdout
    process = launch("train.py", *family.flags(root))
    assert process.wait() == 0, process.stderr
    moved, unmoved = metrics(root), metrics(family.straight)
    assert [line["step"] for line in moved] == [line["step"] for line in unmoved]
    for here, there in zip(moved, unmoved, strict=True):
        assert here.get("train/batch_hash") == there.get("train/batch_hash")
        for name in ("train/loss", "train/nll", "valid/loss"):
            assert here.get(name, 0) == pytest.approx(there.get(name, 0), abs=1e-5), (here["step"], name)


@pytest.mark.exhaustive
def test_resume_skips_a_damaged_newest_checkpoint_and_reports_it(tiny, launch, straight, tmp_path):
    root = killed_after(straight, tmp_path / "run", 24)
    arrays = max((root / "checkpoints" / "24" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    process = launch("train.py", *tiny.flags(root))
    assert process.wait() == 0, process.stderr
    assert f"{root / 'checkpoints' / '24'} is damaged" in process.stderr
    assert "Continuing from the checkpoint for step 16." in process.stdout
    assert (root / "checkpoints" / "damaged-24").is_dir()
    assert_same_run(straight, root)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_resume_with_other_data_is_refused(tiny, call, straight, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny.text.read_text() + "one more line that was not there\n")
    root = killed_after(straight, tmp_path / "run", 24)
    config, workdir = tiny.flags(root)
    outcome = call("train.py", config.replace(str(tiny.text), str(text)), workdir)
    assert outcome.status == 1
    assert outcome.stderr.count("error: ") == 1 and "changed: train/text" in outcome.stderr
    # The same path with other content.
    saved = (root / "config.json").read_text()
    (root / "config.json").write_text(saved.replace(str(tiny.text), str(text)))
    outcome = call("train.py", config.replace(str(tiny.text), str(text)), workdir)
    assert outcome.status == 1
    assert outcome.stderr.count("error: ") == 1 and "train/text" in outcome.stderr
    assert checkpoints_of(root)[-1] == 24
