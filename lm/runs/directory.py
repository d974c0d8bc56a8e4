"""The run directory (`--workdir`): every file that another command needs, and the lock that guards training.

config.json      the resolved config        metrics.jsonl   one JSON object per line: step and metrics
tokenizer/       tokenizer files            tensorboard/    event files
checkpoints/     see lm/checkpoints         curves.png      drawn from metrics.jsonl
eval/<step>/     results of eval.py         .lock           held by the process that trains here
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.schema import EFFECTS, differences_affecting, migrated
from lm.errors import UserError
from lm.files import replacing

DERIVED_FROM_DATA = (("model", "vocab_size"), ("model", "source_vocab_size"), ("data", "labels"))
# The settings that train.num_epochs and the data determine, each with the value that stands for "not yet known".
DERIVED_FROM_EPOCHS = (("train", "num_steps", -1), ("optimizer", "decay_steps", 0), ("optimizer", "warmup_steps", -1))
TOKENIZERS = ("tokenizer", "tokenizer_source")  # the second only with data.separate_vocabularies
# Files that a run may leave behind if it is killed during start-up.
LEFTOVER = re.compile(r"\.lock|\.(config\.json|metrics\.jsonl)(\.\d+)?\.tmp")


class RunDirectory:
    """The directory of one run: its paths, its config, its checkpoints, its metrics and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config_path = self.root / "config.json"
        self.tokenizer_dir = self.root / TOKENIZERS[0]
        self.checkpoints_dir = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.tensorboard_dir = self.root / "tensorboard"
        self.curves_path = self.root / "curves.png"
        self._lock: int | None = None

    def eval_dir(self, step: int) -> Path:
        return self.root / "eval" / str(step)

    @classmethod
    def open(cls, root: Path, config: Config, *, is_first: bool = True) -> Self:
        """Opens a directory for training, either to start a run or to continue one, and writes config.json.

        A run that ended before its first step may be started again with any config. The first process holds a lock
        until `close` or until it dies; the others write nothing. Raises UserError if the path is not a directory or
        holds other files, if its run was trained with another config, or if another process is training in it.
        """
        run = cls(root)
        if not is_first:
            return run
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            foreign = sorted(each.name for each in run.root.iterdir() if not LEFTOVER.fullmatch(each.name))
            if foreign and not run.config_path.exists():
                problem = f"holds {foreign[0]!r} but no config.json, so it is not a run directory"
                raise UserError(f"{run.root}: {problem}; choose a new or empty one with --workdir.")
            run._take_lock()
            if run.config_path.exists():
                config = run._continued(config)
            run.write_config(config)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{run.root}: is not a directory, or lies below a file; use another --workdir.") from None
        except OSError as error:
            raise UserError(f"{run.root}: cannot be used as a run directory: {error.strerror}.") from None
        except UserError:
            run.close()
            raise
        return run

    @classmethod
    def existing(cls, root: Path) -> Self:
        """Opens a run for reading. Raises UserError if there is no run or its config is invalid."""
        run = cls(root)
        if not run.root.is_dir():
            raise UserError(f"{run.root}: no such run directory; check --workdir, or train first.")
        run.load_config()
        return run

    def load_config(self) -> Config:
        """Returns the config without retired settings. Raises UserError if config.json is missing or invalid."""
        try:
            values = json.loads(self.config_path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{self.root}: has no config.json, so it holds no run; check --workdir.") from None
        except OSError as error:
            raise UserError(f"{self.config_path}: cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UserError(f"{self.config_path}: damaged ({error}); restore it, or use another --workdir.") from None
        try:
            return Config.from_dict(migrated(values) if isinstance(values, dict) else values, reset_unread=True)
        except UserError as error:
            raise UserError(f"{self.config_path}: edited, or written by another version of lm: {error}") from None

    def write_config(self, config: Config) -> None:
        """Replaces config.json atomically."""
        with replacing(self.config_path, durable=True) as temporary:
            temporary.write_text(config.to_json(), encoding="utf-8")

    def open_checkpoints(self, config: Config, *, read_only: bool = True) -> Checkpoints:
        """Returns the checkpoints of the run, for use in a `with` block."""
        return Checkpoints(self.checkpoints_dir, config.checkpoint, read_only=read_only)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        """Takes a POSIX lock. (A forked worker that outlives this process would keep a lock taken by flock(2).)"""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "just starting"
            os.close(descriptor)
            if not isinstance(error, (BlockingIOError, PermissionError)):
                return  # a file system without locks
            problem = f"another process is training in this directory ({holder})"
            raise UserError(f"{self.root}: {problem}; wait for it, stop it, or use another --workdir.") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = descriptor

    def _continued(self, config: Config) -> Config:
        """Returns the config to continue the run with. Raises UserError if it describes a different run."""
        old, new = self.load_config(), config
        a, b = old.to_dict(), new.to_dict()
        for section, name in DERIVED_FROM_DATA:
            if not (a[section][name] and b[section][name]):  # one of them is not derived yet
                a[section][name] = b[section][name] = a[section][name] or b[section][name]
        if new.train.num_epochs == old.train.num_epochs > 0:  # which give the same steps, as the data is the same
            for section, name, unknown in DERIVED_FROM_EPOCHS:
                if b[section][name] == unknown:
                    b[section][name] = a[section][name]
        resolved = {**new.to_dict(), **{name: dict(b[name]) for name in ("model", "data", "train", "optimizer")}}
        # A longer run is the same run only if the learning rate of each step stays the same.
        unit = "num_epochs" if new.train.num_epochs else "num_steps"
        longer = getattr(new.train, unit) > getattr(old.train, unit) > 0
        if longer and not new.optimizer.schedule_entry.decays_last:
            for each in (a, b):
                del each["train"]["num_steps"], each["train"]["num_epochs"]
            if not new.optimizer.schedule_entry.has_end:
                del a["optimizer"]["decay_steps"], b["optimizer"]["decay_steps"]
        lines = differences_affecting(set(EFFECTS) - {"nothing"}, Config, a, b)
        if not lines:
            return Config.from_dict(resolved, reset_unread=True)
        kept = self.checkpoints_dir.is_dir() and any(self.checkpoints_dir.iterdir())
        if not kept and not any(self._metric_lines()):  # e.g. after a first attempt with a wrong path
            for name in TOKENIZERS:  # the new config may need different ones
                shutil.rmtree(self.root / name, ignore_errors=True)
            return new
        changed, advice = {line.split(":")[0] for line in lines}, ""
        if longer and changed <= {"optimizer.decay_steps", "optimizer.warmup_steps"}:
            keep = " ".join(f"--config.{name}={attrgetter(name)(old)}" for name in sorted(changed))
            advice = f" To train longer at its final learning rate, add {keep}."
        more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise UserError(
            f"{self.root}: holds a run with another config ({'; '.join(lines[:8])}{more}). "
            f"Start a new run in another --workdir, or restore the old values to continue this one.{advice}"
        )

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the objects of metrics.jsonl, without a torn last line. Raises UserError if another is invalid."""
        lines = list(self._metric_lines())
        for number, (_, values) in enumerate(lines, start=1):
            if values is None and number < len(lines):
                raise UserError(f"{self.metrics_path}, line {number}: is not a JSON object; remove the line.")
        return [values for _, values in lines if values is not None]

    def truncate_metrics(self, step: int) -> None:
        """Drops torn lines and the lines of steps after `step`, at which the run resumes."""
        lines = list(self._metric_lines())
        kept = [line for line, values in lines if values is not None and values.get("step", -1) <= step]
        if len(kept) < len(lines):
            with replacing(self.metrics_path, durable=True) as temporary:
                temporary.write_bytes(b"".join(kept))

    def _metric_lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Yields each line with its object, or with None if the line is torn or invalid."""
        try:
            content = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.splitlines(keepends=True):
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            yield line, values if isinstance(values, dict) and line.endswith(b"\n") else None
