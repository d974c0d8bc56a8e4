"""Tests that commands import large libraries only when needed, and that a second start compiles nothing."""

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import pytest

from lm.runs.compile_cache import CHECKED, tidy, use_compile_cache
from tests.run_helpers import assert_same_run

ROOT = Path(__file__).resolve().parent.parent
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorstore", "grain", "numpy", "scipy", "rich", "etils"}
LATER = {"matplotlib", "pyarrow", "sacrebleu", "sklearn", "scipy.stats", "scipy.special", "nltk", "pandas", "seqeval"}
LATER |= {"rouge_score", "tensorflow_datasets", "sentencepiece", "tokenizers", "jinja2", "tensorboardX"}
LATER |= {"wandb", "lm_eval", "transformers", "tensorflow", "torch", "jieba", "huggingface_hub"}
HELP = """
import contextlib, os, runpy, sys
sys.argv = [sys.argv[1], "--help"]
with contextlib.redirect_stdout(open(os.devnull, "w")), contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name="__main__")
print(*sys.modules)
"""
IMPORTS = """
import sys
import lm.parallel.distributed, lm.runs.compile_cache, lm.runs.repeats, lm.training.loop
import lm.runs.baselines, lm.runs.evaluate, lm.runs.mixing
import lm.aot, lm.chat, lm.data.show, lm.generate, lm.harness, lm.ngram, lm.predict, lm.vectors
print(*sys.modules)
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    """Returns the modules that a new interpreter has imported after it ran the code, which prints them."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_help_imports_neither_jax_nor_another_large_library(command):
    modules = modules_after(HELP, command)
    assert "lm.config.command" in modules
    assert modules & (JAX | LATER) == set()


def test_commands_import_libraries_for_rare_uses_only_when_they_are_used():
    modules = modules_after(IMPORTS)
    assert JAX - {"scipy"} <= modules
    assert modules & LATER == set()


def programs_in(cache: Path) -> dict[str, int]:
    """Returns the name and the size of each entry of the compile cache."""
    return {path.name: path.stat().st_size for path in (cache / "xla").glob("*-cache")}


@pytest.mark.exhaustive
def test_second_start_compiles_nothing_and_repeats_the_first_run_to_the_bit(tiny, launch, tmp_path):
    cache = tmp_path / "cache"
    changes = {"train__num_steps": 4, "eval__every_steps": 2, "checkpoint__every_steps": 2}
    changes |= {"optimizer__warmup_steps": 1, "eval__prompts": "('a quick',)"}

    def train(name: str) -> tuple[Path, str]:
        process = launch("train.py", *tiny.flags(tmp_path / name, **changes), LM_CACHE_DIR=cache)
        assert process.wait() == 0, process.stderr
        return tmp_path / name, process.stderr

    compiled, _ = train("compiled")
    known = programs_in(cache)
    assert any(name.startswith("jit_train_step") for name in known) and len(known) > 5
    loaded, _ = train("loaded")
    assert programs_in(cache) == known, "each program that JAX compiles becomes an entry"
    assert_same_run(compiled, loaded)

    # A damaged entry is replaced if it is new. Otherwise, its program is compiled, and nothing is said.
    paths = sorted((cache / "xla").glob("*-cache"))
    for index, path in enumerate(paths):
        written = path.stat().st_mtime
        os.truncate(path, path.stat().st_size // 2)
        old = written - 1000 if index % 2 else (cache / "xla" / CHECKED).stat().st_mtime + 1
        os.utime(path, (old, old))
    damaged, stderr = train("damaged")
    assert "cache" not in stderr
    now = programs_in(cache)
    assert set(now) == set(known)
    assert all(now[path.name] > 0.9 * known[path.name] for path in paths[::2])
    assert all(now[path.name] == known[path.name] // 2 for path in paths[1::2])
    assert_same_run(compiled, damaged)


@pytest.fixture
def cache_settings():
    """Restores JAX's settings after a test that changes them."""
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def entry(folder: Path, name: str, size: int, second: float) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(bytes(size))
    os.utime(path, (second, second))
    return path


def test_least_recently_used_programs_are_removed_from_a_large_cache(tmp_path):
    tidy(tmp_path)  # so that the entries below count as checked
    a, b, c = (entry(tmp_path, name, 100, second) for name, second in (("a", 1000), ("b", 3000), ("c", 2000)))
    tidy(tmp_path, largest=300)
    assert a.exists() and b.exists() and c.exists()
    os.utime(a, (4000, 1000))  # read at 4000
    tidy(tmp_path, largest=299)
    assert a.exists() and b.exists() and not c.exists()
    tidy(tmp_path, largest=100)
    assert a.exists() and not b.exists()


def test_truncated_programs_are_removed_but_other_formats_stay(tmp_path):
    tidy(tmp_path)
    whole, soon = zlib.compress(b"program" * 1000), time.time() + 1000
    contents = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "whole": whole,
        "zstd": b"\x28\xb5\x2f\xfd...",
        "x": b"x\x00",
    }
    paths = {name: entry(tmp_path, name, 0, soon) for name in contents}
    for name, path in paths.items():
        path.write_bytes(contents[name])
        os.utime(path, (soon, soon))
    tidy(tmp_path)
    assert [name for name, path in paths.items() if path.exists()] == ["whole", "zstd", "x"]


def test_cache_that_cannot_be_written_is_not_used(tmp_path, monkeypatch, capsys, cache_settings):
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "file"))
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None  # there is no directory to read
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and f"not stored in {tmp_path / 'file' / 'xla'} (Not a directory)" in note


def test_users_choose_another_cache_or_none(tmp_path, monkeypatch, cache_settings):
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/xla")
    use_compile_cache()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/xla" and list(tmp_path.iterdir()) == []
    jax.config.update("jax_enable_compilation_cache", True)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
