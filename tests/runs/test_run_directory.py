"""Who may train in a run directory and with which changes, and metrics.jsonl after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm.config import Config, defaults, source
from lm.errors import UserError
from lm.parallel import signals
from lm.runs.directory import RunDirectory
from tests.conftest import content_of

ROOT = Path(__file__).resolve().parents[2]


def config(**changes: object) -> Config:
    """Returns a config with changed settings: `config(train__num_steps=5)`."""
    values = defaults()
    values.data.train.docs = source(kind="embedded")
    values.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return Config.from_dict(values.to_dict())


def reopen(root: Path, new: Config) -> RunDirectory:
    with RunDirectory.open(root, new) as run:
        return run


def start(root: Path, new: Config) -> None:
    """Creates a run that has done its first step."""
    reopen(root, new).metrics_path.write_text('{"step": 1}\n')


def test_new_run_can_be_opened_again(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    with RunDirectory.open(root, config()) as run:
        assert run.load_config() == config()
        assert RunDirectory.existing(root).load_config() == config()
    assert run.eval_dir(30) == root / "eval" / "30"
    assert sorted(os.listdir(root)) == [".lock", "config.json"]


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh__tensor": 2},
        {"log__every_steps": 1, "log__tensorboard": False},
        {"data__num_workers": 3, "data__prefetch": 9, "data__cache_dir": "/x"},
        {"train__accumulation": 4, "train__max_bad_steps": 1},
        {"checkpoint__every_steps": 7},
        {"eval__every_steps": 7, "eval__prompts": ("a", "b")},
        {"model__attention": "xla", "model__remat": "full"},
        {"data__test": {"more": source(kind="embedded").to_dict()}},
        {},
    ],
)
def test_run_continues_with_changes_that_affect_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    start(tmp_path, config())
    run = reopen(tmp_path, config(**changes))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(config(**changes).to_json())
    assert run.load_config() == config(**{**changes, "data__cache_dir": ""}), "other commands choose their own cache"


def test_continuing_writes_nothing_when_it_opens(tmp_path: Path) -> None:
    root = tmp_path / "run"
    old, new = (config(data__train={"docs": {"path": path}}) for path in ("/old", "/new"))
    run = reopen(root, old)
    run.tokenizer_dir.mkdir()
    (run.checkpoints_dir / "3").mkdir(parents=True)
    before = content_of(root)
    assert reopen(root, new).moved == ["data.train.docs.path: '/old' -> '/new'"]
    assert content_of(root) == before
    run.tokenizer_dir.rmdir()
    with pytest.raises(UserError, match="tokenizer is missing, but the run has checkpoints"):
        reopen(root, old)


def test_user_error_before_the_first_step_removes_a_new_run(tmp_path: Path) -> None:
    for existed in (False, True):
        root = tmp_path / "new" / "run"
        if existed:
            root.mkdir(parents=True)
        with pytest.raises(UserError, match="bad data"), RunDirectory.open(root, config()) as run:
            run.tokenizer_dir.mkdir()
            run.checkpoints_dir.mkdir()
            raise UserError("bad data")
        assert [each.name for each in tmp_path.rglob("*")] == (["new", "run"] if existed else [])
    with pytest.raises(UserError), RunDirectory.open(root, config()) as run:
        run.metrics_path.write_text('{"step": 1}\n')
        raise UserError("bad steps")
    assert sorted(os.listdir(root)) == [".lock", "config.json", "metrics.jsonl"], "the user may want to look at it"


def test_failure_of_another_process_removes_a_new_run(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "new", config()) as run:
        run.tokenizer_dir.mkdir()
        signals.state.withdraw()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionError), RunDirectory.open(tmp_path / "new", config()):
        raise ConnectionError("the other process has closed its connection, but not yet said why")
    signals.state.withdraw()
    assert list(tmp_path.iterdir()) == []
    with RunDirectory.open(tmp_path / "begun", config()) as run:
        run.metrics_path.write_text('{"step": 1}\n')
        signals.state.withdraw()
        assert run.metrics_path.exists() and run.config_path.exists()
    assert signals.state.withdraw is None, "a complete run stays"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model__num_layers": 2}, "model.num_layers: 6 -> 2"),
        ({"model__scan_layers": False}, "model.scan_layers: True -> False"),
        ({"model__dtype": "bfloat16"}, "model.dtype"),
        ({"train__batch_size": 8}, "train.batch_size: 32 -> 8"),
        ({"optimizer__b2": 0.9}, "optimizer.b2: 0.95 -> 0.9"),
        ({"optimizer__ema_decay": 0.9}, "optimizer.ema_decay"),
        ({"data__train": {"other": source(kind="embedded").to_dict()}}, "data.train.other"),
        ({"data__sequence_length": 128}, "data.sequence_length: 256 -> 128"),
    ],
)
def test_another_config_is_refused_with_the_settings_that_differ(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    start(tmp_path, config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        RunDirectory.open(tmp_path, config(**changes))
    assert named in str(error.value) and "--workdir" in str(error.value) and "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == before
    reopen(tmp_path, config())  # the refusal released the lock


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoints/3"])
def test_run_can_become_another_before_its_first_step(tmp_path: Path, kept: str) -> None:
    """Its tokenizer may have been trained on other data and is removed."""
    other = config(data__train={"other": source(kind="embedded").to_dict()})
    tokenizer = reopen(tmp_path, config()).tokenizer_dir / "model"
    for new in (config(), other):
        tokenizer.parent.mkdir(exist_ok=True)
        tokenizer.write_text("trained on the text of the first config")
        assert reopen(tmp_path, new).load_config() == new
        assert not tokenizer.exists()
    path = tmp_path / kept
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"step": 1}\n') if path.suffix else path.mkdir()
    with pytest.raises(UserError, match="holds a run with another config"):
        reopen(tmp_path, config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "bert"}', "is a published model, not a run directory"),
        ('{"colour": "red"}', "config.json was edited, or was written by another version"),
        ("torn", "config.json is damaged"),
    ],
)
def test_directory_with_a_foreign_config_is_left_alone(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match=message):
        RunDirectory.open(tmp_path, config())
    assert (tmp_path / "config.json").read_text() == content and (tmp_path / "tokenizer").exists()


def test_message_lists_at_most_eight_differences(tmp_path: Path) -> None:
    start(tmp_path, config())
    changes = {f"model__{key}": 8 for key in ("num_layers", "d_model", "num_heads", "head_dim", "d_ff", "window")}
    changes |= {"seed": 1, "train__batch_size": 8, "optimizer__warmup_steps": 3, "data__sequence_length": 9}
    with pytest.raises(UserError, match=r"and [0-9]+ more") as error:
        RunDirectory.open(tmp_path, config(**changes))
    assert str(error.value).count("->") == 8


def test_vocab_size_may_be_derived_later(tmp_path: Path) -> None:
    unresolved = config()
    resolved = dataclasses.replace(unresolved, model=dataclasses.replace(unresolved.model, vocab_size=77))
    start(tmp_path, unresolved)
    run = RunDirectory(tmp_path)
    run.write_config(resolved)
    run.tokenizer_dir.mkdir()
    (run.checkpoints_dir / "1").mkdir(parents=True)
    assert reopen(tmp_path, unresolved).load_config() == resolved  # kept, not back to 0
    assert reopen(tmp_path, resolved).load_config() == resolved
    with pytest.raises(UserError, match=r"model.vocab_size: 77 -> 78"):
        reopen(tmp_path, config(model__vocab_size=78))


def test_run_may_get_more_steps_only_if_the_schedule_stays_the_same(tmp_path: Path) -> None:
    for schedule in ("constant", "inverse_sqrt"):
        start(tmp_path / schedule, config(optimizer__schedule=schedule))
        more = config(optimizer__schedule=schedule, train__num_steps=2000)
        assert reopen(tmp_path / schedule, more).load_config() == more
        with pytest.raises(UserError, match=r"train.num_steps: 2000 -> 1000"):
            reopen(tmp_path / schedule, config(optimizer__schedule=schedule))
    start(tmp_path / "cosine", config())
    with pytest.raises(UserError, match=r"decay_steps: 1000 -> 2000.*add --config.optimizer.decay_steps=1000"):
        reopen(tmp_path / "cosine", config(train__num_steps=2000))
    reopen(tmp_path / "cosine", config(train__num_steps=2000, optimizer__decay_steps=1000))
    wsd = {"optimizer__schedule": "warmup_stable_decay", "optimizer__decay_steps": 100}
    start(tmp_path / "wsd", config(**wsd))
    with pytest.raises(UserError, match=r"train.num_steps: 1000 -> 2000"):
        reopen(tmp_path / "wsd", config(**wsd, train__num_steps=2000))


def test_directory_that_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis.tex"):
        RunDirectory.open(tmp_path, config())
    assert os.listdir(tmp_path) == ["thesis.tex"]
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "below"):
        with pytest.raises(UserError, match="not a directory"):
            RunDirectory.open(path, config())
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / ".config.json.tmp").write_text("{")  # left by a kill at the start
    reopen(tmp_path / "torn", config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        (b'{"seed": ', "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"seed": 0, "from_the_future": 1}', "another version"),
        (b"[]", "another version"),
    ],
)
def test_opening_a_missing_or_damaged_run_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        RunDirectory.existing(tmp_path / "absent")
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        RunDirectory.existing(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.exhaustive
def test_lock_is_held_until_the_process_dies(tmp_path: Path) -> None:
    """The holder has a forked child that outlives it; kill -9 of the holder releases the lock."""
    reopen(tmp_path, config())
    program = (
        "import os, sys, time; from pathlib import Path\n"
        "from lm.runs.directory import RunDirectory\n"
        "root = Path(sys.argv[1]); run = RunDirectory.open(root, RunDirectory.existing(root).load_config())\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"training in this directory .process {holder.pid} on "):
            RunDirectory.open(tmp_path, config())
        RunDirectory.existing(tmp_path)  # reading is allowed
        holder.kill()
        holder.wait()
        reopen(tmp_path, config())
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", config(), is_first=False)
    assert not (tmp_path / "run").exists()


def test_metrics_are_read_and_truncated_after_a_kill(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_metrics() == []
    run.truncate_metrics(5)
    assert not run.metrics_path.exists()
    rows = [{"step": step, "train/loss": 1 / (step + 1)} for step in range(0, 50, 10)]
    lines = [json.dumps(row) + "\n" for row in rows]
    run.metrics_path.write_text("".join(lines))
    assert run.read_metrics() == rows
    for torn in ('{"step": 50, "tr', '{"step": 50}', "\0" * 20):
        run.metrics_path.write_text("".join(lines) + torn)
        assert run.read_metrics() == rows
    run.truncate_metrics(30)
    assert run.metrics_path.read_text() == "".join(lines[:4])
    run.truncate_metrics(30)
    assert run.read_metrics() == rows[:4]
    run.metrics_path.write_text(lines[0] + "{}}\n" + lines[1])
    with pytest.raises(UserError, match="line 2"):
        run.read_metrics()
    run.truncate_metrics(30)
    assert run.read_metrics() == rows[:2]
    run.truncate_metrics(-1)
    assert run.read_metrics() == []
