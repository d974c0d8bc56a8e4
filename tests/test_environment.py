"""The set-up of .venv by make (.ci/environment), with a fake interpreter that installs nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "environment"

# Answers all calls of the script: the version, whether it can create environments, creating one, installing.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {no_ensurepip} ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*" pip "*) [ ! -e offline ] || exit 1; sleep {sleep}; echo "$*" >>installs; touch "$(dirname "$0")/package" ;;
esac
"""

# A background job ignores SIGINT, and so would every process that it starts.
SHELL = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('sh', ['sh', *sys.argv[1:]])"


class Folder:
    """A folder with lock files and a PATH with fake interpreters only."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.venv = root / "a folder", root / "bin", root / "a folder" / ".venv"
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
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_installs_once_and_again_when_the_lock_changes(folder):
    status, lines = folder.make()
    assert (status, folder.installs(), len(lines)) == (0, 1, 2)
    assert folder.make() == (0, [])
    (folder.venv / "added by hand").touch()
    (folder.root / "requirements.lock").write_text("a==2\n")
    assert folder.make()[0] == 0
    assert folder.installs() == 2 and not (folder.venv / "added by hand").exists()


def test_development_lock_is_installed_on_top_and_serves_for_both(folder):
    folder.make()
    (folder.venv / "added by hand").touch()
    assert folder.make("requirements-dev.lock")[0] == 0
    assert folder.installs() == 2 and (folder.venv / "added by hand").exists()
    assert folder.make() == (0, []) and folder.make("requirements-dev.lock") == (0, [])


def test_failed_install_leaves_nothing_or_the_old_environment(folder):
    (folder.root / "offline").touch()
    status, lines = folder.make()
    assert status == 1 and "network" in lines[-1] and not folder.venv.exists()
    (folder.root / "offline").unlink()
    folder.make()
    (folder.root / "offline").touch()
    assert folder.make("requirements-dev.lock")[0] == 1
    assert folder.make() == (0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_install_is_repeated(folder, number):
    folder.python("python3", "3.12", sleep=30)
    process = folder.start()
    deadline = time.monotonic() + 30
    while not (folder.venv / "bin" / "python").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    second = folder.make()
    assert second[0] == 1 and f"process {process.pid} is making" in second[1][0]
    os.killpg(process.pid, number)
    assert process.wait(timeout=20) != 0
    process.stderr.close()
    assert number == signal.SIGKILL or not folder.venv.exists()
    folder.python("python3", "3.12")
    assert folder.make()[0] == 0 and folder.installs() == 1


def test_foreign_environment_is_refused_and_left_alone(folder):
    folder.venv.mkdir()
    (folder.venv / "theirs").touch()
    status, lines = folder.make()
    assert status == 1 and len(lines) == 1 and "was not made by make" in lines[0]
    assert [each.name for each in folder.venv.iterdir()] == ["theirs"]


def test_another_python_replaces_the_environment(folder):
    folder.make()
    folder.python("python3.13", "3.13")
    assert folder.make(python="python3.13")[0] == 0 and folder.installs() == 2
    assert folder.make(python="python3.13") == (0, []) and folder.make() == (0, [])


def test_first_suitable_python_is_used(folder):
    folder.python("python3", "3.9")
    folder.python("python3.13", "3.13", no_ensurepip=1)
    folder.python("python3.12", "3.12")
    status, lines = folder.make()
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
def test_unsuitable_python_is_refused_in_one_line_and_leaves_nothing(folder, version, no_ensurepip, words):
    folder.python("python3", version, no_ensurepip=no_ensurepip)
    status, lines = folder.make()
    assert status == 1 and len(lines) == 1 and words in lines[0]
    assert not folder.venv.exists() and folder.installs() == 0


def test_unsuitable_python_leaves_the_existing_environment(folder):
    folder.make()
    status, lines = folder.make(python="python9")
    assert status == 1 and "no python9 runs here" in lines[0]
    assert folder.make() == (0, [])


def test_missing_packages_for_comparisons_are_named_with_a_status_of_their_own(tmp_path):
    """.ci/run then skips the comparison; any other failure counts as one."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '"-m venv "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;\n'
        '"-c "*) dirname "$0" ;;\n'
        "*requirements-peers.lock) exit 1 ;;\n"
        "esac\n"
    )
    python.chmod(0o755)
    made = subprocess.run(
        ["bash", SCRIPT.with_name("peers"), "made"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 75 and "the packages of requirements-peers.lock cannot be installed" in made.stdout
    assert (tmp_path / "made" / "bin" / "base.pth").read_text() == f"{python.parent.relative_to(tmp_path)}\n"
