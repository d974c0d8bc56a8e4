"""Bad flags and run directories: exit status 1, one line that names the culprit, and no written file is damaged.

Settings are in test_bad_settings.py, data in test_bad_data.py, and the settings of single tasks in test_bad_tasks.py.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_helpers import train_apart

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


SHORT = {"train__num_steps": 2, "optimizer__warmup_steps": 1, "checkpoint__every_steps": 1}


@pytest.fixture(scope="module")
def trained(tiny, launch, tmp_path_factory) -> Path:
    """A run of two steps with a checkpoint after each."""
    return train_apart(launch, tiny, tmp_path_factory.mktemp("trained") / "run", **SHORT)


@pytest.fixture(scope="module")
def trained_pairs(tiny_pairs, launch, tmp_path_factory) -> Path:
    """The same for pairs."""
    return train_apart(launch, tiny_pairs, tmp_path_factory.mktemp("trained_pairs") / "run", **SHORT)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=w"], "--config is missing"),
        (["--config=CONFIG"], "--workdir is missing"),
        (["--config=configs/quickstrat.py", "--workdir=w"], "there is no file configs/quickstrat.py"),
        (["--config=CONFIG", "--workdir=w", "now"], "'now' is not a flag"),
        (["--config=CONFIG", "--workdir=w", "--steps=5"], "'steps'"),
        (["--config=CONFIG", "--workdir=w", "--num_processes=two"], "num_processes"),
        (
            ["--config=CONFIG", "--workdir=w", "--coordinator=here", "--num_processes=2"],
            "--coordinator must be the host:port",
        ),
        (["--config=CONFIG", "--workdir"], "Missing value for flag --workdir"),
        (["--config"], "--config=: no file is given"),
        (["--workdir=w", "--config.train.num_steps=5"], "--config=FILE.py"),
    ],
)
def test_bad_flags_of_training_are_refused(refused, tiny, flags, message):
    refused(message, "train.py", *(flag.replace("CONFIG", f"{tiny.config}:{tiny.text}") for flag in flags))


@pytest.mark.exhaustive
def test_unusable_run_directories_are_refused(refused, tiny, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused("file is not a directory", "train.py", *tiny.flags(tmp_path / "file"), keeping=tmp_path)
    refused("is not a directory, or one of its parents is a file", "train.py", *tiny.flags(tmp_path / "file" / "run"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    refused("holds 'thesis.tex' but no config.json", "train.py", *tiny.flags(tmp_path / "foreign"), keeping=tmp_path)
    changes = {**SHORT, "model__d_model": 32, "optimizer__learning_rate": 0.5}
    flags = tiny.flags(trained, **changes)
    refused("model.d_model: 16 -> 32; ", "train.py", *flags, keeping=trained)
    refused("optimizer.learning_rate: 0.001 -> 0.5", "train.py", *flags, keeping=trained)


def test_a_run_directory_in_use_is_refused(refused, tiny, trained):
    code = "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
    arguments = [sys.executable, "-c", code, trained / ".lock"]
    holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    refused("another process is training in this directory", "train.py", *tiny.flags(trained, **SHORT), keeping=trained)
    holder.communicate(b"\n")


@pytest.mark.parametrize("command", ["train.py", pytest.param("eval.py", marks=pytest.mark.exhaustive), "lm.generate"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "config.json is damaged"),
        ("tokenizer/*", "tokenizer"),
        ("checkpoints/*/record/metadata", "no checkpoint is intact (damaged: 2, 1)"),
    ],
)
def test_damaged_runs_are_refused(refused, tiny, trained, tmp_path, command, broken, message):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    for path in root.glob(broken):
        path.write_bytes(path.read_bytes()[:-5])
    flags = tiny.flags(root, **SHORT) if command == "train.py" else [f"--workdir={root}"]
    prompt = ["--prompt=a"] if command == "lm.generate" else []
    refused(message, command, *flags, *prompt, keeping=root)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("eval.py", [], "--workdir is missing"),
        ("eval.py", ["--workdir=nowhere"], "nowhere: there is no such run directory"),
        ("eval.py", ["--workdir=RUN", "--step=7"], "no checkpoint for step 7; choose one of 1, 2"),
        ("eval.py", ["--workdir=RUN", "--step=last"], "--step=last"),
        ("eval.py", ["--workdir=RUN", "--split=test"], "there is no test split"),
        ("eval.py", ["--workdir=RUN", "--text=nothing.txt"], "nothing.txt: there is no such file"),
        ("eval.py", ["--workdir=RUN", "--stride=33"], "config.eval.stride: 33 exceeds data.sequence_length=32"),
        ("lm.generate", ["--prompt=a"], "--workdir is missing"),
        ("lm.generate", ["--workdir=nowhere", "--prompt=a"], "nowhere: there is no such run directory"),
        ("lm.generate", ["--workdir=RUN"], "there is no prompt"),
        ("lm.generate", ["--workdir=RUN", "--prompt=a", "--step=7"], "no checkpoint for step 7"),
        ("lm.generate", ["--workdir=RUN", f"--prompt={'a ' * 40}"], "81"),
        ("lm.generate", ["--workdir=RUN", "--prompt=a", "--temperature=-1"], "temperature"),
        ("lm.generate", ["--workdir=RUN", "--prompts_file=nothing.txt"], "--prompts_file=nothing.txt cannot be read"),
        ("lm.data.show", [], "--config=FILE.py is missing"),
    ],
)
def test_bad_flags_of_other_commands_are_refused(refused, trained, command, flags, message):
    refused(message, command, *(flag.replace("RUN", str(trained)) for flag in flags), keeping=trained)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=text.txt"], "--text: RUN needs pairs of texts; specify them in data.test of a config"),
        (["--average=3"], "cannot average 3 checkpoints: the run has only 2; train with a larger"),
        (["--average=2", "--step=1"], "cannot average 2 checkpoints: the run has only 1 up to step 1"),
        (["--average=0"], "--average must be at least 1, not 0"),
        (["--num_beams=-1"], "--num_beams must be at least 1, or 0 to use the value in the config, not -1"),
        (["--num_beams=100000"], "config.eval.generation.num_beams: 100000 is above the largest"),
        (["--length_penalty=nan"], "config.eval.generation.length_penalty: expected a finite number"),
        (["--split=test"], "there is no test split"),
        (["--split=valid/other"], "valid has no data source named 'other'; choose one of reversal"),
    ],
)
@pytest.mark.exhaustive
def test_bad_flags_of_evaluations_of_pairs_are_refused(refused, trained_pairs, flags, message):
    argv = ["eval.py", f"--workdir={trained_pairs}", *flags]
    refused(message.replace("RUN", str(trained_pairs)), *argv, keeping=trained_pairs)


def test_a_process_prints_the_refusal_to_stderr_only(tiny, launch, tmp_path):
    process = launch("train.py", *tiny.flags(tmp_path / "run"), "--config.train.num_step=5")
    assert process.wait() == 1
    assert process.stderr == (
        "error: --config.train.num_step: there is no such setting; "
        "did you mean num_steps or num_epochs or max_bad_steps?\n"
    )
    assert process.stdout == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train.py", "eval.py", "lm.generate", "lm.predict", "lm.merge_lora"])
def test_help_lists_the_flags_that_all_commands_share(call, command):
    outcome = call(command, "--help")
    assert outcome.status == 0 and "\n  --workdir=" in outcome.stdout
    assert ("\n  --step=" in outcome.stdout) == (command != "train.py")
    assert ("\n  --num_processes=" in outcome.stdout) == command.endswith(".py")
