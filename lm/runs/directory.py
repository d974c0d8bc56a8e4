"""The run directory (`--workdir`): all that another command needs, and the rule of who may train in it.

config.json      the resolved config        metrics.jsonl   an object a line: step and values
tokenizer/       its files                  tensorboard/    events
checkpoints/     see lm/checkpoints/checkpoints.py       curves.png      drawn from metrics.jsonl
eval/<step>/     results of eval.py         .lock           held by the training at work here
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lm.config import Config
from lm.errors import UserError
from lm.config.schema import differences

# Settings that a run may change when it goes on: they change neither the batches nor the updates (where the
# order of a sum changes, rounding). Not among them: model.scan_layers, which changes the tree of parameters, and
# model.dtype, which changes the updates by more than rounding.
DERIVED_FROM_DATA = (("model", "vocab_size"), ("model", "num_classes"), ("data", "labels"))
CHANGEABLE = (
    "checkpoint.",
    "data.cache_dir",
    "data.num_workers",
    "data.prefetch",
    "data.test.",  # sources of eval.py alone
    "eval.",
    "log.",
    "mesh.",
    "model.attention",
    "model.remat",
    "train.accumulation",
    "train.max_bad_steps",
    "train.patience",  # a run that it stopped goes on where it stood
)
TOKENIZERS = ("tokenizer", "tokenizer_source")  # the second only with data.separate_vocabularies
OURS = (".lock", ".config.json.tmp", ".metrics.jsonl.tmp")  # may be left by a run that was killed as it began


class RunDirectory:
    """Paths in the directory of one run, its config, its metrics and its lock."""

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

    # --- opening ------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, config: Config, *, is_first: bool = True) -> Self:
        """For training: a new directory, or the one of a run that `config` continues. Writes config.json.

        A run that ended before its first step has nothing to lose: any config begins it anew. Process 0 opens it with
        `is_first` and holds a lock until `close` or its death; other processes write nothing. A vocab_size of 0, not
        known yet, equals any other.

        Raises:
            UserError: not a directory, someone else's directory, the config of another run that has trained (the keys
                that differ are named), or a training is at work in it.
        """
        run = cls(root)
        if not is_first:
            return run
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            foreign = sorted(each.name for each in run.root.iterdir() if each.name not in OURS)
            if foreign and not run.config_path.exists():
                raise UserError(
                    f"{run.root}: holds {foreign[0]!r} but no config.json, so it is not a run directory; "
                    "name a new or an empty one with --workdir."
                )
            run._take_lock()
            if run.config_path.exists():
                config = run._continued(config)
            run.write_config(config)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{run.root}: is not a directory, or lies below a file; name another --workdir.") from None
        except OSError as error:
            raise UserError(f"{run.root}: cannot be used as a run directory: {error.strerror}.") from None
        except UserError:
            run.close()
            raise
        return run

    @classmethod
    def existing(cls, root: Path) -> Self:
        """For eval, generation and export: a directory in which a run was started. Writes nothing.

        Raises:
            UserError: there is none, or its config.json can't be read.
        """
        run = cls(root)
        if not run.root.is_dir():
            raise UserError(f"{run.root}: no such run directory; check --workdir, or train first.")
        run.load_config()
        return run

    def load_config(self) -> Config:
        """The config of the run. UserError if config.json is missing, damaged, or of a newer version."""
        try:
            values = json.loads(self.config_path.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{self.root}: has no config.json, so it is not a run directory; check --workdir."
            ) from None
        except OSError as error:
            raise UserError(f"{self.config_path}: cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UserError(
                f"{self.config_path}: damaged ({error}); put back a copy, or start in another --workdir."
            ) from None
        try:
            return Config.from_dict(values)
        except UserError as error:
            raise UserError(
                f"{self.config_path}: written by another version of this code, or edited: {error}"
            ) from None

    def write_config(self, config: Config) -> None:
        """Replaces config.json, atomically."""
        self._replace(self.config_path, config.to_json().encode())

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _take_lock(self) -> None:
        """A POSIX lock and not flock(2): a forked worker that outlives us must not keep it."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{self.root}: a training is at work in this directory ({holder or 'just starting'}); "
                "wait for it, stop it, or name another --workdir."
            ) from None
        except OSError:
            os.close(descriptor)  # a file system without locks: nothing can be told, so nothing is refused
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = descriptor

    def _has_trained(self) -> bool:
        kept = self.checkpoints_dir.is_dir() and any(self.checkpoints_dir.iterdir())
        return kept or any(True for _ in self._metric_lines())

    def _forget_tokenizers(self) -> None:
        """They may be of other text, or of another kind, than those of the config that begins."""
        for name in TOKENIZERS:
            shutil.rmtree(self.root / name, ignore_errors=True)

    def _continued(self, config: Config) -> Config:
        """The config with which the run goes on. UserError if it would be another run."""
        old, new = self.load_config(), config
        a, b = old.to_dict(), new.to_dict()
        for section, name in DERIVED_FROM_DATA:
            if not (a[section][name] and b[section][name]):  # in one of them it was not known yet
                a[section][name] = b[section][name] = a[section][name] or b[section][name]
        # More steps are the same run only if the learning rate of each step is the same.
        if new.train.num_steps > old.train.num_steps and not new.optimizer.schedule_entry.decays_last:
            del a["train"]["num_steps"], b["train"]["num_steps"]
            if not new.optimizer.schedule_entry.has_end:
                del a["optimizer"]["decay_steps"], b["optimizer"]["decay_steps"]
        lines = [line for line in differences(a, b) if not line.startswith(CHANGEABLE)]
        if lines and not self._has_trained():  # a first try with a wrong path, say, must not cost the directory
            self._forget_tokenizers()
            return new
        steps_only = [line.split(":")[0] for line in lines] == ["optimizer.decay_steps"]
        if lines:
            keep = f"--config.optimizer.decay_steps={old.optimizer.decay_steps}"
            longer = f" To train longer at the learning rate of its end, add {keep}." if steps_only else ""
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise UserError(
                f"{self.root}: holds a run with another config ({'; '.join(lines[:8])}{more}). "
                f"Start this one in another --workdir, or go back to the old values to continue that one.{longer}"
            )
        return Config.from_dict({**new.to_dict(), "model": b["model"], "data": b["data"]})

    # --- metrics ------------------------------------------------------------------------------------------

    def read_metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, without a torn last one. Empty without the file. UserError if another is broken."""
        lines = list(self._metric_lines())
        for number, (_, values) in enumerate(lines, start=1):
            if values is None and number < len(lines):
                raise UserError(f"{self.metrics_path}, line {number}: is not a JSON object; remove the line.")
        return [values for _, values in lines if values is not None]

    def truncate_metrics(self, step: int) -> None:
        """Before a run goes on from `step`: drops the lines of later steps, which it will write again, and what a
        kill has torn. With -1 all lines that have a step go."""
        lines = list(self._metric_lines())
        kept = [line for line, values in lines if values is not None and values.get("step", -1) <= step]
        if len(kept) < len(lines):
            self._replace(self.metrics_path, b"".join(kept))

    def _metric_lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Each line as it is, and its object; None for one that is torn."""
        try:
            content = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return
        for line in content.splitlines(keepends=True):
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            whole = isinstance(values, dict) and line.endswith(b"\n")
            yield line, values if whole else None

    def _replace(self, path: Path, content: bytes) -> None:
        """Whoever reads `path` finds the old content or the new, after a crash too."""
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
