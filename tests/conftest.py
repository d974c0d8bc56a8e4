"""Sets up JAX for all tests: eight CPU devices, no silent broadcasting, exact matrix products, quick compilation.

Also defines the fixtures that test whole commands: tiny experiments (`tiny`; with pairs, `tiny_pairs`; with labels,
`tiny_labels`), commands in processes of their own (`launch`) and commands inside the process of the tests (`call`).
"""

import gc
import importlib.metadata
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHEAP_COMPILATION = [
    # The tests' programs are tiny, so compiling them costs more than running them.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Several pytest processes keep all cores busy, so splitting the work of one further only costs time.
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_multi_thread_eigen=false",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The older code generator takes a third of the time. Later versions lack it, and abort on an unknown flag.
    CHEAP_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *CHEAP_COMPILATION]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["LM_HUGE_PAGES"] = "0"  # a command that runs in the process of the tests must not replace this process
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # commands share every compiled program

import jax
import pytest
from absl.flags import FLAGS

from tests.tiny_configs import TINY_CONFIG, TINY_LABELS_CONFIG, TINY_PAIRS_CONFIG

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Traced programs consist of millions of live objects, which the collector would scan again and again.
gc.set_threshold(200_000, 50, 100)

ROOT = Path(__file__).resolve().parent.parent
# The slowest files run first, in this order, so that no worker is left with one of them at the end.
LONG_FILES = (
    "test_fields.py",
    "test_generation.py",
    "test_parity.py",
    "test_gradients.py",
    "test_resume.py",
    "test_golden_values.py",
    "test_recurrent_runs.py",
    "test_generate_command.py",
    "test_process_evaluation.py",
    "test_fuzz.py",
    "test_processes.py",
    "test_loop.py",
    "test_continuations.py",
    "test_step.py",
    "test_resume_tasks.py",
    "test_attention.py",
    "test_saving.py",
    "test_recurrent.py",
    "test_prefetch.py",
    "test_eval_command.py",
    "test_chat.py",
    "test_streams.py",
    "test_damage.py",
    "test_epochs.py",
    "test_mixed_up.py",
    "test_task_steps.py",
    "test_convolutional.py",
)


@dataclass(frozen=True)
class Tiny:
    """An experiment that trains in a second."""

    text: Path
    config: Path
    cache: Path

    def flags(self, workdir: Path, **changes: object) -> list[str]:
        """Returns flags for train.py; `train__num_steps=5` becomes --config.train.num_steps=5."""
        flags = [f"--config={self.config}:{self.text}", f"--workdir={workdir}"]
        return flags + [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    draw = random.Random(0)
    words = ("a", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "while", "seven", "wizards", "brew")
    lines = [" ".join(draw.choices(words, k=draw.randint(3, 20))) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "tiny.py").write_text(TINY_CONFIG)
    return Tiny(folder / "text.txt", folder / "tiny.py", shared_cache(tmp_path_factory))


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An experiment for an encoder-decoder: "a b c" (in `text`) becomes "c b a" (in text.target beside it)."""
    folder = tmp_path_factory.mktemp("tiny_pairs")
    draw = random.Random(1)
    sources = [draw.choices("abcdefgh", k=draw.randint(2, 10)) for _ in range(300)]
    for side, step in (("source", 1), ("target", -1)):
        (folder / f"text.{side}").write_text("".join(" ".join(words[::step]) + "\n" for words in sources))
    (folder / "tiny_pairs.py").write_text(TINY_PAIRS_CONFIG)
    return Tiny(folder / "text.source", folder / "tiny_pairs.py", shared_cache(tmp_path_factory))


@pytest.fixture(scope="session")
def tiny_labels(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An experiment for classification: lines that contain an x, or a y."""
    folder = tmp_path_factory.mktemp("tiny_labels")
    draw = random.Random(2)
    lines = ["text\tlabel"]
    for _ in range(240):
        label = draw.choice("xy")
        lines.append(f"{' '.join(draw.choices('abcd' + label, k=draw.randint(2, 10)))} {label}\tis_{label}")
    (folder / "lines.tsv").write_text("\n".join(lines) + "\n")
    (folder / "tiny_labels.py").write_text(TINY_LABELS_CONFIG)
    return Tiny(folder / "lines.tsv", folder / "tiny_labels.py", shared_cache(tmp_path_factory))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the commands, which do not use the data.cache_dir in a run directory, out of the user's cache."""
    os.environ["LM_CACHE_DIR"] = str(shared_cache(tmp_path_factory))


def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # all workers share compiled programs
    return shared / "cache"


class Process:
    """A command started by launcher.py."""

    def __init__(self, pid: int, folder: Path, ask: Callable[..., Any]) -> None:
        self.pid, self.folder, self._ask = pid, folder, ask
        self._status: int | None = None

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while the command runs."""
        if self._status is None:
            self._status = self._ask(poll=self.pid)
        return self._status

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Waits until the condition holds; fails if the command ends or the time runs out first."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.status is None, f"it ended with {self.status}\n{self.stdout}{self.stderr}"
            assert time.monotonic() < end, f"still running after {seconds} s\n{self.stdout}{self.stderr}"
            time.sleep(0.005)

    def wait(self, seconds: float = 300) -> int:
        end = time.monotonic() + seconds
        while self.status is None:
            assert time.monotonic() < end, f"still running after {seconds} s\n{self.stdout}{self.stderr}"
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def family(self) -> list[int]:
        """Returns the ids of the live processes of its session: its own and those of its descendants."""
        alive = []
        for name in os.listdir("/proc"):
            try:
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
            except OSError:
                continue
            if state and int(state[3]) == self.pid and state[0] != "Z":
                alive.append(int(name))
        return alive


Launch = Callable[..., Process]


@pytest.fixture(scope="session")
def launch(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`launch("train.py", flag, ..., devices=1, HOME=...)` starts a command; `.wait()` returns its exit status."""
    launcher = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "launcher.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started: list[Process] = []

    def ask(**request: object) -> Any:
        print(json.dumps(request), file=launcher.stdin, flush=True)
        return json.loads(launcher.stdout.readline())

    def start(*argv: object, devices: int = 1, **environment: object) -> Process:
        folder = tmp_path_factory.mktemp("process")
        for name in ("stdout", "stderr"):
            (folder / name).touch()
        flags = " ".join([f"--xla_force_host_platform_device_count={devices}", *CHEAP_COMPILATION])
        changed = {"XLA_FLAGS": flags, "LM_CACHE_DIR": tiny.cache, **environment}
        pid = ask(
            argv=[str(each) for each in argv],
            environment={**os.environ, **{name: str(value) for name, value in changed.items()}},
            folder=str(folder),
        )
        started.append(Process(pid, folder, ask))
        return started[-1]

    yield start
    for process in started:
        if process.status is None:
            os.killpg(process.pid, signal.SIGKILL)
    launcher.stdin.close()
    launcher.wait()


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def call(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`call("train.py", flag, ...)` runs a command in this process until it exits."""

    import grain  # noqa: F401  (defines its own flags, which must stay defined)

    def run(*argv: object) -> Outcome:
        defined = set(FLAGS)
        cache = jax.config.jax_compilation_cache_dir
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        monkeypatch.setenv("LM_CACHE_DIR", str(tiny.cache))
        monkeypatch.setattr(sys, "argv", [str(each) for each in argv])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                if sys.argv[0].endswith(".py"):
                    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
                else:
                    runpy.run_module(sys.argv[0], run_name="__main__")
        finally:
            for name in set(FLAGS) - defined:
                delattr(FLAGS, name)
            sys.modules.pop("config_config", None)  # or the next config file would be loaded into it
            jax.config.update("jax_compilation_cache_dir", cache)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        output = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), output.out, output.err)

    return run


def content_of(root: Path) -> dict[Path, bytes]:
    """Returns the content of every file below `root`, except the lock, which names the last process to request it."""
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def refused(call: Callable[..., Outcome]) -> Callable[..., None]:
    """`refused(message, command, flag, ...)` checks that a command fails with one line, which contains the message.

    Nothing below the directory `keeping` may change.
    """

    def check(message: str, *argv: object, keeping: Path | None = None) -> None:
        before = content_of(keeping) if keeping else {}
        outcome = call(*argv)
        assert outcome.status == 1, outcome.stderr
        errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert errors == outcome.stderr.splitlines()[-1:], outcome.stderr
        assert "Traceback" not in outcome.stderr + outcome.stdout
        assert message in errors[0]
        if keeping:
            assert content_of(keeping) == before

    return check


@pytest.fixture
def refused_settings(refused: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """`refused_settings(message, tiny, ["data.holdout=no", ...])` checks that train.py fails and writes nothing."""

    def check(message: str, experiment: Tiny, overrides: list[str]) -> None:
        settings = [f"--config.{each}" for each in overrides]
        refused(message, "train.py", *experiment.flags(tmp_path / "run"), *settings)
        assert list(tmp_path.iterdir()) == []

    return check


def parse_share(text: str) -> tuple[int, int]:
    share, shares = map(int, text.split("/"))
    if not 1 <= share <= shares:
        raise ValueError
    return share, shares


def is_in_share(name: str, share: int, shares: int) -> bool:
    return zlib.crc32(name.encode()) % shares == share - 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive-share",
        type=parse_share,
        default="1/1",
        metavar="K/N",
        help="of the tests marked exhaustive, run only the K-th of N shares (each test is in one share, by its name)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = config.getoption("exhaustive_share")

    def is_selected(item: pytest.Item) -> bool:
        return not item.get_closest_marker("exhaustive") or is_in_share(item.nodeid, *share)

    if others := [item for item in items if not is_selected(item)]:
        config.hook.pytest_deselected(items=others)
        items[:] = filter(is_selected, items)
    order = {name: index for index, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_sessionfinish() -> None:
    gc.freeze()  # pytest now collects garbage five times, and need not scan all compiled programs


def pytest_collection_finish() -> None:
    gc.freeze()  # the imported modules stay, so the garbage collector need not scan them repeatedly
