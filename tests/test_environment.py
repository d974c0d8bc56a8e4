"""How make sets up .venv (.ci/environment), with an interpreter that only pretends to install."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "environment"

# Answers what the script asks of a Python: its version, whether it can make environments, to make one, to install.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {no_ensurepip} ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*" pip "*) [ ! -e offline ] || exit 1; sleep {sleep}; echo "$*" >>installs; touch "$(dirname "$0")/package" ;;
esac
"""

# A job in the background ignores SIGINT, and so would all that it starts.
SHELL = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('sh', ['sh', *sys.argv[1:]])"


class Place:
    """A folder with locks and a PATH on which only pretended interpreters are found."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.venv = root / "a place", root / "bin", root / "a place" / ".venv"
        self.root.mkdir()
        self.bin.mkdir()
        for tool in (
            "sh",
            "cat",
            "cksum",
            "cp",
            "date",
            "dirname",
            "grep",
            "mkdir",
            "rm",
            "sed",
            "sleep",
            "touch",
            "tr",
        ):
            (self.bin / tool).symlink_to(_which(tool))
        self.python("python3", "3.12")
        (self.root / "requirements.lock").write_text("a==1\n")
        (self.root / "requirements-dev.lock").write_text("a==1\nb==1\n")

    def python(self, name: str, version: str, *, no_ensurepip: int = 0, sleep: int = 0) -> None:
        path = self.bin / name
        path.write_text(FAKE_PYTHON.format(version=version, no_ensurepip=no_ensurepip, sleep=sleep))
        path.chmod(0o755)

    def start(self, lock: str = "requirements.lock", python: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SHELL, str(SCRIPT), ".venv", lock, python]
        environment = {"PATH": str(self.bin)}
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def make(self, lock: str = "requirements.lock", python: str = "") -> tuple[int, list[str]]:
        process = self.start(lock, python)
        lines = process.communicate(timeout=60)[1].splitlines()
        return process.returncode, lines

    def installs(self) -> int:
        log = self.root / "installs"
        return len(log.read_text().splitlines()) if log.exists() else 0


def _which(tool: str) -> str:
    return next(f"{each}/{tool}" for each in os.environ["PATH"].split(":") if os.access(f"{each}/{tool}", os.X_OK))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_installs_once_and_again_when_the_lock_changes(place):
    status, lines = place.make()
    assert (status, place.installs(), len(lines)) == (0, 1, 2)
    assert place.make() == (0, [])
    (place.venv / "added by hand").touch()
    (place.root / "requirements.lock").write_text("a==2\n")
    assert place.make()[0] == 0
    assert place.installs() == 2 and not (place.venv / "added by hand").exists()


def test_the_development_lock_goes_on_top_and_serves_for_both(place):
    place.make()
    (place.venv / "added by hand").touch()
    assert place.make("requirements-dev.lock")[0] == 0
    assert place.installs() == 2 and (place.venv / "added by hand").exists()
    assert place.make() == (0, []) and place.make("requirements-dev.lock") == (0, [])


def test_a_failed_install_leaves_nothing_or_what_was_there(place):
    (place.root / "offline").touch()
    status, lines = place.make()
    assert status == 1 and "network" in lines[-1] and not place.venv.exists()
    (place.root / "offline").unlink()
    place.make()
    (place.root / "offline").touch()
    assert place.make("requirements-dev.lock")[0] == 1
    assert place.make() == (0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_install_is_made_anew(place, number):
    place.python("python3", "3.12", sleep=30)
    process = place.start()
    deadline = time.monotonic() + 30
    while not (place.venv / "bin" / "python").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    second = place.make()
    assert second[0] == 1 and f"process {process.pid} is making" in second[1][0]
    os.killpg(process.pid, number)
    assert process.wait(timeout=20) != 0
    process.stderr.close()
    assert number == signal.SIGKILL or not place.venv.exists()
    place.python("python3", "3.12")
    assert place.make()[0] == 0 and place.installs() == 1


def test_a_foreign_environment_is_refused_and_left_alone(place):
    place.venv.mkdir()
    (place.venv / "theirs").touch()
    status, lines = place.make()
    assert status == 1 and len(lines) == 1 and "was not made by make" in lines[0]
    assert [each.name for each in place.venv.iterdir()] == ["theirs"]


def test_another_python_makes_it_anew(place):
    place.make()
    place.python("python3.13", "3.13")
    assert place.make(python="python3.13")[0] == 0 and place.installs() == 2
    assert place.make(python="python3.13") == (0, []) and place.make() == (0, [])


def test_the_first_python_that_can_is_taken(place):
    place.python("python3", "3.9")
    place.python("python3.13", "3.13", no_ensurepip=1)
    place.python("python3.12", "3.12")
    status, lines = place.make()
    assert status == 0 and "with Python 3.12" in lines[0]


@pytest.mark.parametrize(
    ("version", "no_ensurepip", "words"),
    [
        ("3.10", 0, "Python 3.11, 3.12 or 3.13 is needed (python3 is 3.10)"),
        ("3.14", 0, "Python 3.11, 3.12 or 3.13 is needed (python3 is 3.14)"),
        ("3.11", 1, "apt install python3.11-venv"),
        ("2; exit 127 #", 0, "no python3 runs here"),
    ],
)
def test_an_unsuitable_python_gets_one_line_and_leaves_nothing(place, version, no_ensurepip, words):
    place.python("python3", version, no_ensurepip=no_ensurepip)
    status, lines = place.make()
    assert status == 1 and len(lines) == 1 and words in lines[0]
    assert not place.venv.exists() and place.installs() == 0


def test_an_unsuitable_python_does_not_cost_the_environment_that_is_there(place):
    place.make()
    status, lines = place.make(python="python9")
    assert status == 1 and "no python9 runs here" in lines[0]
    assert place.make() == (0, [])
