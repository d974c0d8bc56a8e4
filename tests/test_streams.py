"""Commands whose standard output is closed, full or ASCII, or whose accelerator is missing, in real processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.run_helpers import train_apart


@pytest.fixture(scope="module")
def trained(tiny, launch, tmp_path_factory) -> Path:
    changes = {"train__num_steps": 1, "train__batch_size": 8, "optimizer__warmup_steps": 0, "eval__every_steps": 1}
    return train_apart(launch, tiny, tmp_path_factory.mktemp("streams") / "run", **changes)


def shell(command: str, **environment: str) -> tuple[int, str]:
    """Runs `python COMMAND` in bash; returns the exit status of the command, not of its readers, and its stderr."""
    line = f"{sys.executable} {command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


@pytest.mark.exhaustive
def test_closed_output_does_not_stop_an_evaluation(trained, tmp_path):
    shutil.copytree(trained, root := tmp_path / "run")
    shutil.rmtree(root / "eval")
    status, stderr = shell(f"eval.py --workdir={root} | true")
    assert (status, "rror" in stderr) == (0, False), stderr
    assert [each.name for each in root.glob("eval/1/results.*")], stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("output", ["| true", ">&-", "<&- >/dev/null"])
def test_closed_streams_end_commands_that_only_print(trained, output):
    command = f"-m lm.generate --workdir={trained} --prompt=a --max_new_tokens=3 {output}"
    status, stderr = shell(command)
    assert (status, stderr) == (0, "")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        ("-m lm.data.show --help >/dev/full", {}, "error: reading or writing failed: No space left on device"),
        ("-m lm.generate --workdir=RUN --prompt=a", {"JAX_PLATFORMS": "tpu"}, "error: JAX_PLATFORMS=tpu: this"),
        ("-m lm.generate --workdir=é --prompt=a", {"PYTHONIOENCODING": "ascii"}, r"error: \xe9: there is no such run"),
        ("eval.py --workdir=RUN", {"SLURM_NTASKS": "two"}, "error: SLURM_NTASKS=two is not a number"),
        ("eval.py --workdir=RUN", {"LM_CACHE_DIR": "~nobody-here/x"}, "error: ~nobody-here/x: there is no such user"),
    ],
)
def test_faults_of_the_environment_are_one_line(trained, command, environment, message):
    status, stderr = shell(command.replace("RUN", str(trained)), **environment)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(errors) == 1 and errors[0].startswith(message), stderr
    assert stderr.splitlines()[-1] == errors[0] and "Traceback" not in stderr
