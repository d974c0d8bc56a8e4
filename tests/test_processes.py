"""Two processes with two devices each train as one process with four."""

import json
import shutil
import signal
import socket
from pathlib import Path

import pytest

from lm.checkpoints.checkpoints import Checkpoints

STEPS = 30


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def metrics(root: Path) -> list[dict]:
    path = root / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_equal_batches_and_close_losses(root: Path, reference: Path) -> None:
    assert [line["step"] for line in metrics(root)] == [line["step"] for line in metrics(reference)]
    for here, there in zip(metrics(root), metrics(reference), strict=True):
        assert here.get("train/batch_hash") == there.get("train/batch_hash")
        for name in ("train/loss", "train/gradient_norm", "valid/loss"):
            assert here.get(name, 0) == pytest.approx(there.get(name, 0), abs=1e-5), (here["step"], name)


@pytest.fixture(scope="module")
def flags(tiny):
    """Returns the flags of train.py for a short run."""

    def make(workdir: Path) -> list[str]:
        changes = {"train__num_steps": STEPS, "checkpoint__every_steps": 10, "eval__every_steps": 10}
        return tiny.flags(workdir, **changes, model__dropout=0.0, optimizer__ema_decay=0.0)  # less to compile

    return make


@pytest.fixture(scope="module")
def reference(launch, flags, tmp_path_factory) -> Path:
    """One process, four devices."""
    root = tmp_path_factory.mktemp("reference") / "run"
    process = launch("train.py", *flags(root), devices=4)
    assert process.wait() == 0, process.stderr
    return root


def launch_pair(launch, *flags):
    shared = [*flags, f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--startup_timeout=60"]
    return [launch("train.py", *shared, f"--process_id={i}", devices=2) for i in range(2)]


def test_two_processes_stop_together_and_one_or_two_resume(launch, flags, reference, tmp_path):
    root = tmp_path / "run"
    pair = launch_pair(launch, *flags(root))
    pair[0].until(lambda: len(metrics(root)) >= 3)
    pair[1].send(signal.SIGTERM)
    assert [process.wait() for process in pair] == [75, 75], pair[0].stderr + pair[1].stderr
    stopped = metrics(root)[-1]["step"]
    assert Checkpoints(root / "checkpoints", read_only=True).steps()[-1] == stopped < STEPS
    assert f"Saved at step {stopped}." in pair[0].stdout

    shutil.copytree(root, tmp_path / "alone")
    process = launch("train.py", *flags(tmp_path / "alone"), devices=4)
    assert process.wait() == 0, process.stderr
    assert_equal_batches_and_close_losses(tmp_path / "alone", reference)

    sample = ["--config.eval.prompts=('a quick',)", "--config.eval.sample_tokens=4"]
    pair = launch_pair(launch, *flags(root), *sample)
    assert [process.wait() for process in pair] == [0, 0], pair[0].stderr + pair[1].stderr
    assert_equal_batches_and_close_losses(root, reference)
    assert "Sample after 'a quick'" in pair[0].stdout and (root / "eval" / str(STEPS) / "results.json").exists()
    printed = [line for line in pair[1].stdout.splitlines() if "Gloo" not in line and "peer ranks" not in line]
    assert printed == [], "only process 0 prints"


def test_a_missing_process_is_named_within_the_startup_timeout(launch, flags, tmp_path):
    coordinator = f"--coordinator=localhost:{free_port()}"
    limits = [coordinator, "--num_processes=2", "--startup_timeout=1"]
    process = launch("train.py", *flags(tmp_path / "run"), *limits, "--process_id=0")
    assert process.wait() == 1
    assert process.stderr.startswith("error: ") and len(process.stderr.splitlines()) == 1
    assert "missing --process_id=1; present 0" in process.stderr and coordinator in process.stderr
    assert not (tmp_path / "run").exists()
