"""Training, evaluation and generation where neither TensorFlow nor PyTorch can be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHEAP_COMPILATION

ROOT = Path(__file__).resolve().parent.parent
BLOCKED = """
import os, runpy, sys
sys.modules["tensorflow"] = sys.modules["torch"] = None
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.exhaustive
def test_training_evaluation_and_generation_run_without_tensorflow_and_pytorch(tiny, launch, tmp_path):
    """Training runs in a new process, including its imports, and writes nothing outside its directory."""
    root = tmp_path / "run"
    elsewhere = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "here")}
    for folder in elsewhere.values():
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "XLA_FLAGS")}
    environment |= {name: str(folder) for name, folder in elsewhere.items()}
    flags = tiny.flags(root, train__num_steps=2, optimizer__warmup_steps=1, log__tensorboard=True)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, ROOT / "train.py", *flags],
        env=environment | {"LM_CACHE_DIR": str(tiny.cache), "XLA_FLAGS": " ".join(CHEAP_COMPILATION)},
        cwd=elsewhere["here"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder in elsewhere.values():
        assert list(folder.rglob("*")) == []
    written = {path.name for path in root.iterdir()}
    assert written == {
        ".lock", "checkpoints", "config.json", "curves.png", "eval", "metrics.jsonl", "tensorboard", "tokenizer"
    }  # fmt: skip
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]

    before = json.loads((root / "eval" / "2" / "results.json").read_text())["metrics"]
    process = launch("eval.py", f"--workdir={root}")
    assert process.wait() == 0, process.stderr
    after = json.loads((root / "eval" / "2" / "results.json").read_text())["metrics"]
    assert after == pytest.approx(before, rel=1e-6), "the same parameters and rows, so the same metrics"
    assert "perplexity" in process.stdout
    process = launch("lm.generate", f"--workdir={root}", "--prompt=a quick", "--max_new_tokens=4")
    assert process.wait() == 0, process.stderr
    assert process.stdout.startswith("a quick")
