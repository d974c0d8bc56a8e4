"""SIGTERM and Ctrl-C, each in a process that has done no more than `catch` them."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.parallel.signals import StopRequest

ROOT = Path(__file__).resolve().parents[2]
AGAIN = 75
START = "import os, signal, sys, time; from lm.parallel import signals; signals.catch()\n"
READY = "print('ready', flush=True)\n"


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def begin(program: str) -> subprocess.Popen:
    """Starts a program, whose output is buffered, and waits until it is ready."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen([sys.executable, "-c", START + program], cwd=ROOT, env=environment, **PIPES)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def stopped(process: subprocess.Popen, number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(60)",
        "while True: sum(range(1000))",
        "import threading; lock = threading.Lock()\nwith lock: lock.acquire()",
    ],
    ids=["sleeping", "computing", "waiting"],
)
def test_a_signal_ends_a_process_with_75_and_one_line(number, work):
    status, _, errors = stopped(begin(READY + work), number)
    assert (status, errors) == (AGAIN, f"stopped by {number.name}; run the same command again.\n")


def test_what_was_printed_is_kept_and_no_file_is_half_written(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    program = f"""
from pathlib import Path
from lm.files import new_directory, replacing
print("first", end="")
with replacing(Path({str(path)!r})) as file, new_directory(Path({str(tmp_path / "tokenizer")!r})) as folder:
    file.write_text("ne")
    (folder / "model").write_text("ha")
    os.write(1, b"ready\\n")
    time.sleep(60)
"""
    status, output, _ = stopped(begin(program))
    assert (status, output) == (AGAIN, "first")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


LOOP = f"""
with signals.StopRequest() as request:
    {READY}    while not (name := request.at(1)):
        time.sleep(0.01)
    print(name, flush=True)
    time.sleep({{seconds}})
"""


def test_a_signal_in_the_loop_waits_for_the_step_and_a_second_one_ends_at_once():
    status, output, errors = stopped(begin(LOOP.format(seconds=0)), signal.SIGINT)
    assert (status, output, errors) == (0, "SIGINT\n", "\nSIGINT: saving after this step, then stopping.\n")
    process = begin(LOOP.format(seconds=60))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(0.3)
    assert stopped(process, signal.SIGINT)[0] == AGAIN


def test_a_signal_that_is_sent_twice_at_once_counts_as_one():
    """GNU timeout, for example, sends it to the command and to its process group."""
    process = begin(LOOP.format(seconds=0))
    process.send_signal(signal.SIGTERM)
    assert stopped(process)[:2] == (0, "SIGTERM\n")


def test_a_forked_process_has_the_usual_handlers():
    """A signal to it must not look like one to its parent."""
    program = f"""
if (child := os.fork()) == 0:
    time.sleep(60)
time.sleep(0.1)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
{READY}time.sleep(0.3)
"""
    process = begin(program)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, f"{-signal.SIGTERM}\n")


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_a_signal_during_the_imports_of_a_command_ends_it_with_75(command, tmp_path):
    (tmp_path / "jax.py").write_text(f"import time\n{READY}time.sleep(60)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, ROOT / command], env=environment, **PIPES)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    assert stopped(process) == (AGAIN, "", "stopped by SIGTERM; run the same command again.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handlers_of_a_caller_are_restored(number, capfd):
    """A run may be part of another program. Stderr is replaced while a checkpoint is saved."""
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.at(1) == ""
        with contextlib.redirect_stderr(io.StringIO()):
            os.kill(os.getpid(), number)
            end = time.monotonic() + 20
            while not request.at(1):
                assert time.monotonic() < end
        assert request.at(2) == number.name
    assert number.name in capfd.readouterr().err
    assert signal.getsignal(number) == before
