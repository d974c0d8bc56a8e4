"""A disk that fills during any write ends a command with one line, the last one, and nothing half-written."""

import os
import shutil
from pathlib import Path

import pytest

from lm.checkpoints.keeping import TORN
from lm.config import Config, LogConfig
from lm.errors import UserError
from lm.reporting.metrics_writer import MetricsWriter
from tests.conftest import ROOT, content_of
from tests.run_helpers import assert_same_run, file_size_limit, train_here

SHORT = {"train__num_steps": 4, "optimizer__warmup_steps": 1, "checkpoint__every_steps": 2, "eval__every_steps": 4}
# A command whose files may not grow beyond a limit, as on a full disk; checkpoints are the largest ones.
LIMITED = """
import resource, runpy, sys
limit, command = int(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
runpy.run_path(command, run_name="__main__")
"""


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("full") / "run"
    assert train_here(tiny, root, **SHORT) == 0
    return root


@pytest.mark.exhaustive
def test_failed_save_ends_with_one_line_and_the_run_continues_later(tiny, launch, trained, tmp_path):
    root, script = tmp_path / "run", tmp_path / "limited.py"
    script.write_text(LIMITED)
    flags = tiny.flags(root, **SHORT)
    process = launch(script, 20_000, ROOT / "train.py", *flags)
    assert process.wait() == 1
    lines = process.stderr.splitlines()
    assert lines[-1].startswith("error: ") and "could not be saved (step 2): File too large" in lines[-1], lines
    assert "Traceback" not in process.stderr and "Event loop" not in process.stderr
    leftovers = list((root / "checkpoints").iterdir())
    assert all(TORN in each.name for each in leftovers), "nothing counts as a checkpoint"
    assert train_here(tiny, root, **SHORT) == 0
    assert not any(each.exists() for each in leftovers)
    assert_same_run(root, trained)


@pytest.mark.parametrize(
    ("function", "named", "is_new"),
    [
        ("lm.data.tokenizing.base.Tokenizer.save", "tokenizer cannot be written: No space left", True),
        ("lm.training.report.write_results", "eval/4 cannot be written: No space left", False),
        ("lm.training.report.draw_curves", "curves.png cannot be written: No space left", False),
    ],
)
@pytest.mark.exhaustive
def test_write_that_fails_is_named(tiny, trained, refused, monkeypatch, tmp_path, function, named, is_new):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(function, full)
    if not is_new:
        shutil.copytree(trained, tmp_path / "run")
    refused(named, "train.py", *tiny.flags(tmp_path / "run", **SHORT))


def test_full_disk_at_an_evaluation_is_a_warning_and_keeps_the_old_results(call, trained, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    before = content_of(root / "eval")
    with file_size_limit(100):
        outcome = call("eval.py", f"--workdir={root}", "--stride=8")
    assert outcome.status == 0, outcome.stderr
    assert "warning: results could not be written" in outcome.stderr.splitlines()[-1]
    assert content_of(root / "eval") == before


@pytest.mark.parametrize("tensorboard", [False, True])
def test_metrics_end_with_whole_lines_and_no_thread_hangs(tmp_path, tensorboard):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig(tensorboard=tensorboard)))
    with file_size_limit(150), pytest.raises(UserError, match=r"cannot be written: (No space left|File too large)"):
        for step in range(100):
            writer.write(step, {"train/loss": 2.5})
        writer.close()
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(tiny, trained, call, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    names = {path.relative_to(root) for path in root.rglob("*")}
    for name in ("tokenizer.tmp-ab3_xyz9", "tokenizer.tmp-999999999-ab3_xyz9", "checkpoints/9.orbax-checkpoint-tmp-1"):
        (root / name).mkdir()
        (root / name / "half").write_text("half")
    for name in (".config.json.999999999.tmp", ".curves.png.999999999.tmp", "eval/4/.results.md.999999999.tmp"):
        (root / name).write_text("half")
    outcome = call("train.py", *tiny.flags(root, **SHORT))
    assert outcome.status == 0, outcome.stderr
    assert {path.relative_to(root) for path in root.rglob("*") if path.name != ".lock"} == names - {Path(".lock")}
