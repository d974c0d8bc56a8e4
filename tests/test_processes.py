"""Two processes with two devices each train as one process with four."""

import json
import re
import shutil
import signal
import socket
import time
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


def launch_pair(launch, *flags, only_second=()):
    shared = [*flags, f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--startup_timeout=60"]
    return [launch("train.py", *shared, f"--process_id={i}", *(only_second if i else ()), devices=2) for i in range(2)]


def errors(process) -> list[str]:
    """Returns the lines on stderr, of which there is one if a process ends as it should."""
    return process.stderr.splitlines()


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
    # Threads of Gloo write the pieces of their lines at the same time, so these may come in any order.
    pieces = r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is|:|\s"
    digits = re.sub(pieces, "", pair[1].stdout)
    assert len(digits) == 3 * pair[1].stdout.count("[Gloo] Rank") and set(digits) <= set("0123456789"), digits


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_killed_process_ends_the_other_with_75(victim, launch, flags, tmp_path):
    """JAX would end it after 90 seconds, by an abort with a native stack trace."""
    pair = launch_pair(launch, *flags(tmp_path / "run"))
    pair[0].until(lambda: "Training" in pair[0].stdout)
    pair[victim].send(signal.SIGKILL)
    killed = time.monotonic()
    other = pair[1 - victim]
    assert other.wait() == 75, other.stderr
    assert time.monotonic() - killed < 30
    line = f"error: process {victim} of 2 died; run the same command again."
    # JAX notices the death of process 0 within milliseconds too, and may write something before or after our line.
    assert errors(other) == [line] if victim else line in errors(other)


def test_an_error_in_one_process_ends_both(launch, flags, tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    (root / "letter.txt").touch()
    pair = launch_pair(launch, *flags(root))
    assert pair[0].wait() == 1
    ended = time.monotonic()
    assert pair[1].wait() == 1
    assert time.monotonic() - ended < 15
    (line,) = errors(pair[0])
    assert line.startswith("error: process 0 of 2: ") and "letter.txt" in line
    assert errors(pair[1]) == [line]


def test_an_error_in_the_second_process_removes_a_new_run(launch, flags, tmp_path):
    """Only the data of process 1 is broken, so process 0 has already written files to the new run directory."""
    (tmp_path / "broken.txt").write_bytes(b"caf\xe9\n" * 40)
    root = tmp_path / "new" / "run"
    pair = launch_pair(launch, *flags(root), only_second=[f"--config.data.train.text.path={tmp_path}/broken.txt"])
    assert pair[1].wait() == 1
    ended = time.monotonic()
    assert pair[0].wait() == 1
    assert time.monotonic() - ended < 15
    (line,) = errors(pair[1])
    assert line.startswith("error: process 1 of 2: ") and "broken.txt: the text is not valid utf-8" in line
    assert errors(pair[0])[-1] == line, "after the progress of its own data"
    assert [each.name for each in tmp_path.iterdir()] == ["broken.txt"]


def test_a_signal_before_the_first_step_ends_both_with_75(launch, flags, tmp_path):
    pair = launch_pair(launch, *flags(tmp_path / "run"))
    pair[1].until(lambda: "Data" in pair[0].stdout)
    pair[1].send(signal.SIGTERM)
    assert [process.wait() for process in pair] == [75, 75], pair[0].stderr + pair[1].stderr
    assert errors(pair[1]) == ["stopped by SIGTERM; run the same command again."]
    assert errors(pair[0]) == ["error: process 1 of 2: stopped by SIGTERM; run the same command again."]


def test_a_missing_process_is_named_within_the_startup_timeout(launch, flags, tmp_path):
    coordinator = f"--coordinator=localhost:{free_port()}"
    limits = [coordinator, "--num_processes=2", "--startup_timeout=1"]
    process = launch("train.py", *flags(tmp_path / "run"), *limits, "--process_id=0")
    assert process.wait() == 1
    assert process.stderr.startswith("error: ") and len(process.stderr.splitlines()) == 1
    assert "missing --process_id=1; present 0" in process.stderr and coordinator in process.stderr
    assert not (tmp_path / "run").exists()
