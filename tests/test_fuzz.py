"""Commands with 200 damaged or meaningless inputs: each ends in time, in one line at most, and destroys nothing.

Case N is drawn from `random.Random(N)`, so `pytest tests/test_fuzz.py -k "[N]"` repeats it.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pyarrow
import pyarrow.parquet
import pytest

from lm.config import Config
from lm.config.schema import describe_settings
from lm.errors import as_user_error
from tests.conftest import content_of
from tests.run_helpers import train_apart

CASES = 200
QUICK = {4, 16, *range(0, CASES, 28)}  # run by `make test`; 4 and 16 have named pipes
SECONDS = 120  # for one command; most need less than one
DEEP = "[" * 100_000 + "]" * 100_000
JUNK = ["", "nope", "-1", "0", "nan", "inf", "1e400", "[]", "None", "True", "\ud800", "\0", "é" * 300, "~nobody/x", "/"]
NUMBERS = ["-1", "0", "1", str(2**31), str(2**32), str(2**63), "9" * 5000, "0.5"]
SHORT = {
    "train__num_steps": 2,
    "train__batch_size": 8,
    "checkpoint__every_steps": 1,
    "eval__every_steps": 1,
    "optimizer__warmup_steps": 1,
    "model__lora_rank": 2,
}
# Settings that make a valid run so long or large that it exceeds the time limit; a machine may be that large.
SIZES = ("num", "length", "size", "d_", "max", "steps", "epochs", "workers", "rank", "layers", "vocab")
ENVIRONMENT = {
    "SLURM_NTASKS": ["two", "", "-1", "²"],
    "TMPDIR": ["/nowhere", "\n"],
    "COLUMNS": ["x", "0", "1"],
    "XDG_CACHE_HOME": ["/proc/none", "~nobody"],
    "HOME": ["", "/nowhere"],
    "MPLCONFIGDIR": ["/proc/none"],
    "LANG": ["xx_YY"],
}
RECORDS = [{"text": f"a b c {number} x", "label": "is_x" if number % 2 else "is_y"} for number in range(80)]


@pytest.fixture(scope="module")
def trained(tiny, launch, tmp_path_factory) -> Path:
    """A run with LoRA adapters and two checkpoints."""
    return train_apart(launch, tiny, tmp_path_factory.mktemp("fuzz") / "run", **SHORT)


class Draw(random.Random):
    """Draws the input of one case."""

    def bytes(self, content: bytes) -> bytes:
        """Damages the content of a file."""
        kind, data = self.randrange(9), bytearray(content)
        at = self.randrange(len(data) + 1)
        if kind == 0:
            return bytes(data[:at])
        if kind == 1:
            return b""
        if kind == 2:
            return DEEP.encode()
        if kind == 3:
            return content.decode("latin-1").encode(self.choice(["utf-16", "utf-16-le", "utf-32"]))
        if kind == 4:
            return gzip.compress(content, mtime=0)
        if kind == 5:
            return content.replace(b"\n", self.choice([b"\r", b"", b"\n\n", b"\n\xef\xbb\xbf"]))
        if kind == 6:
            junk = self.choice([b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\t", b"1e999", b"[" * 5000, b"9" * 5000])
            return bytes(data[:at] + junk + data[at:])
        for _ in range(self.choice([1, 3, 30])):
            if data:
                data[self.randrange(len(data))] = self.randrange(256)
        return bytes(data)

    def json(self, value: object) -> object:
        """Replaces or removes one value inside a JSON value."""
        if isinstance(value, (dict, list)) and value and self.random() < 0.8:
            key = self.choice(list(value)) if isinstance(value, dict) else self.randrange(len(value))
            if self.random() < 0.3:
                del value[key]
            else:
                value[key] = self.json(value[key])
            return value
        return self.choice([None, -1, 2**40, 1e300, "x", "", [], {}, True, [None], {"x": 1}, ["a"] * 3])

    def damage(self, root: Path) -> None:
        """Damages a file of a run directory, or replaces it by something that is no file."""
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
        arrays = [path for path in files if path.parent.name == "d"]  # their names, and thus their order, are random
        files = [path for path in files if path not in arrays] + [max(arrays, key=lambda path: path.stat().st_size)]
        known = [path for path in files if path.suffix in (".json", ".jsonl") or path.name == "metadata"]
        path = self.choice(known if self.random() < 0.7 else files)
        kind = self.randrange(8)
        if kind < 3 and path in known and path.suffix != ".jsonl":
            self._damage_json(path)
        elif kind < 5:
            path.write_bytes(self.bytes(path.read_bytes()))
        else:
            path.unlink()
            if kind == 5:
                path.mkdir()
            elif kind == 6:
                os.mkfifo(path)
            else:
                path.symlink_to(path.name)

    def _damage_json(self, path: Path) -> None:
        value = json.loads(path.read_text())
        if path.name == "metadata":  # the record of a checkpoint, which gets a valid hash
            content = self.json(value["content"])
            encoded = json.dumps(content, sort_keys=True).encode()
            value = {"content": content, "sha256": hashlib.sha256(encoded).hexdigest()}
        else:
            value = self.json(value)
        path.write_text(json.dumps(value))

    def data(self) -> tuple[str, bytes]:
        """Returns the kind and the content of a valid data file with labels."""
        kind = self.choice(["tsv", "csv", "jsonl", "parquet"])
        if kind == "parquet":
            stream = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), stream)
            return kind, stream.getvalue()
        if kind == "jsonl":
            return kind, "".join(json.dumps(each) + "\n" for each in RECORDS).encode()
        separator = "\t" if kind == "tsv" else ","
        rows = [["text", "label"], *([each["text"], each["label"]] for each in RECORDS)]
        return kind, "".join(separator.join(row) + "\n" for row in rows).encode()


class Case:
    """The command of one case, and the directory in which its input lies."""

    def __init__(self, number: int, folder: Path, trained: Path, tiny, tiny_labels) -> None:
        self.draw, self.folder, self.tiny, self.labels = Draw(number), folder, tiny, tiny_labels
        self.root = folder / "run"
        shutil.copytree(trained, self.root)
        self.environment: dict[str, str] = {}
        kinds = [self.flags, self.settings, self.data_file, self.run_directory, self.run_directory, self.surroundings]
        self.argv = kinds[number % len(kinds)]()

    def valid(self, *names: str) -> list[str]:
        """Returns a valid command line of one of the named commands, or of any."""
        root, train = f"--workdir={self.root}", self.tiny.flags(self.root, **SHORT)
        commands = {
            "train.py": train,
            "eval.py": [root],
            "lm.generate": [root, "--prompt=a", "--max_new_tokens=2"],
            "lm.predict": [root, "--text=a b", "--pooling=mean"],
            "lm.merge_lora": [root, f"--output={self.folder / 'merged'}"],
            "lm.compare": [f"--workdir={self.root},{self.root}"],
            "lm.data.show": [train[0], "--n=1"],
            "lm.aot": [train[0], "--topology=v5e:8x8"],
        }
        name = self.draw.choice(names or list(commands))
        return [name, *commands[name]]

    def flags(self) -> list[str]:
        name, *flags = self.valid()
        at, junk = self.draw.randrange(len(flags)), self.draw.choice(JUNK + NUMBERS).replace("\0", "")
        change = self.draw.randrange(4)
        if change == 0:
            del flags[at]
        elif change == 1:
            flags[at] = f"{flags[at].partition('=')[0]}={junk}"
        elif change == 2:
            flags.append(self.draw.choice(["--nope", "nope", "--", "-x=1", "--workdir", "--config.nope=1", junk]))
        else:
            known = "step split text stride average num_beams seed seeds top_p batch_size input output prompts_file"
            flags.append(f"--{self.draw.choice(known.split())}={junk}")
        return [name, *flags]

    def settings(self) -> list[str]:
        known = [name for name, *_ in describe_settings(Config)]
        setting = self.draw.choice(known).replace("NAME", "text")
        is_size = any(part in setting for part in SIZES)
        value = self.draw.choice([each for each in JUNK if each != "\0"] + ([] if is_size else NUMBERS))
        name, *flags = self.valid("train.py", "lm.data.show")
        if name == "train.py":
            flags[1] = f"--workdir={self.folder / 'new'}"
        return [name, *flags, f"--config.{setting}={value}"]

    def data_file(self) -> list[str]:
        kind, content = self.draw.data()
        path = self.folder / f"data.{kind}"
        path.write_bytes(self.draw.bytes(content))
        kinds = [f"--config.data.{split}.lines.kind={kind}" for split in ("train", "valid", "test")]
        argv = ["lm.data.show", f"--config={self.labels.config}:{path}", "--n=1", *kinds]
        if self.draw.random() < 0.2:
            argv.append(f"--config.data.train.lines.encoding={self.draw.choice(['utf-16', 'utf-7', 'hex', 'latin-1'])}")
        if self.draw.random() < 0.2:
            return [*self.valid("lm.predict")[:2], "--pooling=mean", f"--input={path}"]
        return argv

    def run_directory(self) -> list[str]:
        argv = self.valid("train.py", "eval.py", "lm.generate", "lm.predict", "lm.merge_lora", "lm.compare")
        self.draw.damage(self.root)
        return argv

    def surroundings(self) -> list[str]:
        for name in self.draw.sample(list(ENVIRONMENT), 2):
            self.environment[name] = self.draw.choice(ENVIRONMENT[name])
        return self.valid()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"still running after {seconds} s")  # raises a BaseException, which no command catches

    before = signal.signal(signal.SIGALRM, give_up)
    # To the main thread, which may be blocked while another could take a signal to the process.
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, signal.SIGALRM))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n in QUICK else pytest.mark.exhaustive) for n in range(CASES)]
)
def test_bad_input_ends_in_one_line_and_destroys_nothing(
    number: int, call: Callable, trained: Path, tiny, tiny_labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(number, tmp_path, trained, tiny, tiny_labels)
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    before = content_of(tmp_path)
    with time_limit(SECONDS):
        outcome = call(*case.argv)
    shown = f"{case.argv}\n{outcome.stdout}{outcome.stderr}"
    lines = outcome.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert outcome.status in (0, 1, 75), shown
    assert errors == (lines[-1:] if outcome.status == 1 and errors else []), shown
    assert errors or outcome.status != 1 or case.argv[0] == "lm.aot", shown
    assert "Traceback" not in shown and all(len(line) <= 500 for line in errors), shown
    if outcome.status == 1 or case.argv[0] != "train.py":
        after = content_of(tmp_path)
        kept = [path for path in before if outcome.status == 1 or "eval" not in path.relative_to(tmp_path).parts]
        changed = [path for path in kept if after.get(path) != before[path]]
        assert not changed, f"{changed}\n{shown}"


def test_missing_accelerators_are_named(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(RuntimeError) as caught:
        jax.devices("tpu")
    message = str(as_user_error(caught.value))
    assert message.startswith("JAX_PLATFORMS=tpu: this accelerator cannot be used (") and len(message) <= 480
    assert as_user_error(RuntimeError("a bug")) is None
