"""The files of launch/: the TPU script with a mock gcloud, and what the containers may do."""

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
# Logs its calls, takes the states of the TPU from a file, one per call, and fails at what $FAILS matches.
GCLOUD = """#!/bin/sh
echo "$4" >>"$LOG/calls"
case "$4" in
describe) head -n 1 "$LOG/states"; [ "$(wc -l <"$LOG/states")" -eq 1 ] || sed -i 1d "$LOG/states" ;;
create) echo READY >"$LOG/states" ;;
delete) echo >"$LOG/states" ;;
esac
case "$*" in $FAILS) exit 1 ;; esac
"""


def run_tpu_script(tmp_path: Path, states: list[str], fails: str = "", answer: str | None = None):
    """Returns the exit status, stderr and the calls of gcloud; with an `answer`, stdin is a terminal."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("gcloud", GCLOUD), ("sleep", "#!/bin/sh\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    terminal, stdin = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    try:
        done = subprocess.run(
            [LAUNCH / "tpu_vm.sh", "lm", "zone", "v5litepod-16", "runtime", "c.py", "/runs/a"],
            cwd=LAUNCH.parent,
            env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path), "FAILS": fails},
            stdin=subprocess.DEVNULL if answer is None else stdin,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(stdin)
    return done.returncode, done.stderr, (tmp_path / "calls").read_text().split()


def test_training_on_a_tpu_that_is_ready(tmp_path):
    assert run_tpu_script(tmp_path, ["READY"]) == (0, "", ["describe", "scp", "ssh", "ssh"])


@pytest.mark.parametrize("answer", [None, "", "n"])
def test_stopped_tpu_is_not_deleted_without_consent(tmp_path, answer):
    status, stderr, calls = run_tpu_script(tmp_path, ["STOPPED"], answer=answer)
    assert status == 1 and calls == ["describe"] and "was not deleted. Start it with: gcloud" in stderr


@pytest.mark.parametrize(("state", "answer"), [("STOPPED", "y"), ("PREEMPTED", None), ("TERMINATED", None)])
def test_tpu_is_replaced_with_consent_or_after_a_preemption(tmp_path, state, answer):
    status, _, calls = run_tpu_script(tmp_path, [state], answer=answer)
    assert status == 0
    assert calls == ["describe", "delete", "describe", "create", "scp", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("fails", "message", "ran"),
    [
        ("*scp*", "The code could not be copied to lm; the output is above. Nothing was started.", 0),
        ("*ssh*MOUNT_HERE*", "The environment could not be prepared on lm", 1),
        ("*ssh*train.py*", "train.py failed on lm; its output is above.", 2),
    ],
)
def test_script_ends_at_the_first_step_that_fails(tmp_path, fails, message, ran):
    status, stderr, calls = run_tpu_script(tmp_path, ["READY"], fails)
    assert status == 1 and message in stderr
    assert calls == ["describe", "scp", *["ssh"] * ran, "describe"]


def test_lost_tpu_is_replaced_even_if_copying_failed(tmp_path):
    status, _, calls = run_tpu_script(tmp_path, ["READY", "PREEMPTED", "PREEMPTED", "STOPPED"], "*scp*")
    assert status == 1  # the mock fails again after the replacement
    assert calls[:5] == ["describe", "scp", "describe", "describe", "delete"]


def test_image_is_pinned_hashed_and_does_not_run_as_root():
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"FROM \S+@sha256:[0-9a-f]{64}", line) for line in lines if line.startswith("FROM"))
    installs = [line for line in lines if "pip install" in line]
    assert installs and all("--require-hashes" in line for line in installs)
    names = [line.split()[0] for line in lines]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert lines[names.index("USER")] == "USER 10001:10001"


def test_cluster_job_has_no_privileges():
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        mounted = {each["mountPath"] for each in container["volumeMounts"]}
        assert mounted == {"/runs", "/tmp"} and {each["name"] for each in pod["volumes"]} == {"runs", "tmp"}
