"""The run directory (`--workdir`), which holds all files of a run and a lock for the training process.

config.json      the resolved config        metrics.jsonl   one JSON object per line: step and metrics
tokenizer/       tokenizer files            tensorboard/    event files
checkpoints/     see lm/checkpoints         curves.png      plot of metrics.jsonl
eval/<step>/     results of eval.py         .lock           held by the training process
eval/train_hashes.npz    hashes of the training examples, to find evaluation examples that duplicate them
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from lm.checkpoints.checkpoints import Checkpoints
from lm.checkpoints.keeping import TORN
from lm.config import Config
from lm.config.experiment import replace_settings
from lm.config.retired import migrated
from lm.config.schema import differences, differences_affecting
from lm.data.tokenizing.base import INFO_FILE
from lm.errors import UserError
from lm.files import parse_json, read_file, remove_leftovers, replacing, storing
from lm.parallel import signals
from lm.runs import fingerprint

PUBLISHED_KEYS = {"model_type", "architectures"}  # in the config.json of a Hugging Face model folder
TOKENIZERS = ("tokenizer", "tokenizer_source")  # the second is used only with data.separate_vocabularies
# Files that a run may leave behind if it is killed during start-up, including names used by earlier versions.
LEFTOVER = re.compile(r"\.lock|\.(config\.json|metrics\.jsonl)(\.\d+)?\.tmp|tokenizer(_source)?\.tmp-[\w-]+")


class RunDirectory:
    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config_path = self.root / "config.json"
        self.tokenizer_dir = self.root / TOKENIZERS[0]
        self.checkpoints_dir = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.tensorboard_dir = self.root / "tensorboard"
        self.curves_path = self.root / "curves.png"
        self.train_hashes_path = self.root / "eval" / "train_hashes.npz"
        self.moved: list[str] = []  # "setting: old -> new" for each file that has moved since the run was trained
        self._made: list[Path] = []  # directories that `open` created, innermost first
        self._lock: int | None = None

    def eval_dir(self, step: int) -> Path:
        return self.root / "eval" / str(step)

    @classmethod
    def open(cls, root: Path, config: Config, *, is_first: bool = True) -> Self:
        """Opens a directory for training, either to start a run or to continue one.

        If the run is new, config.json is written, and it is removed again if a UserError escapes the `with` block or
        another process fails before the first step. Until its first step, a run may be started again with any config.
        The first process holds a lock until it calls `close` or dies; the other processes write nothing. Raises
        UserError if the path is not a directory or holds unrelated files, if another process is training in it, or if
        the existing run has a different config or inconsistent files.
        """
        run = cls(root)
        if not is_first:
            return run
        try:
            missing = [each for each in (run.root, *run.root.parents) if not each.exists()]
            run.root.mkdir(parents=True, exist_ok=True)
            run._made = missing
            foreign = sorted(each.name for each in run.root.iterdir() if not LEFTOVER.fullmatch(each.name))
            if foreign and not run.config_path.exists():
                problem = f"holds {foreign[0]!r} but no config.json, so it is not a run directory"
                raise UserError(f"{run.root} {problem}; choose a new or empty directory with --workdir.")
            run._take_lock()
            if run.config_path.exists():
                run._check_continues(config)
            run._remove_leftovers()
            if not run.has_checkpoints():
                for name in TOKENIZERS:  # left by an earlier attempt, perhaps on other data
                    shutil.rmtree(run.root / name, ignore_errors=True)
                run.write_config(config)
        except (FileExistsError, NotADirectoryError):
            problem = "is not a directory, or one of its parents is a file"
            raise UserError(f"{run.root} {problem}; use another --workdir.") from None
        except OSError as error:
            run.close()
            raise UserError(f"{run.root} cannot be used as a run directory: {error.strerror}.") from None
        except UserError:
            run.close()
            raise
        signals.state.withdraw = run._withdraw
        return run

    @classmethod
    def existing(cls, root: Path) -> Self:
        """Opens a run for reading. Raises UserError if there is no run or if its files are inconsistent."""
        run = cls(root)
        if not run.root.is_dir():
            raise UserError(f"{run.root}: there is no such run directory; check --workdir, or train a model first.")
        run._check_records(run.load_config(), fingerprint.FOR_READING)
        return run

    def load_config(self) -> Config:
        """Returns the config of the run. Raises UserError if config.json is missing or invalid.

        data.cache_dir is empty, because a run directory that comes from someone else must not choose this location.
        """
        return replace_settings(self._load_config(), {"data.cache_dir": ""})

    def _load_config(self) -> Config:
        try:
            values = parse_json(read_file(self.config_path))
        except FileNotFoundError:
            raise UserError(f"{self.root} has no config.json, so it is not a run directory; check --workdir.") from None
        except OSError as error:
            raise UserError(f"{self.config_path} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UserError(f"{self.config_path} is damaged ({error}); restore it, or use another --workdir.") from None
        if isinstance(values, dict) and values.keys() & PUBLISHED_KEYS:
            problem = "is a published model, not a run directory"
            raise UserError(
                f"{self.root} {problem}; first run: python -m lm.hf import --model={self.root} --workdir=..."
            )
        try:
            return Config.from_dict(migrated(values) if isinstance(values, dict) else values, reset_unread=True)
        except UserError as error:
            raise UserError(
                f"{self.config_path} was edited, or was written by another version of lm: {error}"
            ) from None

    def write_config(self, config: Config) -> None:
        with storing(self.config_path), replacing(self.config_path, durable=True) as temporary:
            temporary.write_text(config.to_json(), encoding="utf-8")

    def open_checkpoints(self, config: Config, *, read_only: bool = True) -> Checkpoints:
        return Checkpoints(self.checkpoints_dir, config.checkpoint, read_only=read_only)

    def check_data(self, config: Config, data: Mapping[str, str]) -> None:
        """Raises UserError if a checkpoint was trained with other settings or on other data."""
        self._check_records(config, fingerprint.FOR_TRAINING, data)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if isinstance(error, UserError):
                self._discard_unless_begun()
        finally:
            if error is None or isinstance(error, UserError):
                signals.state.withdraw = None
            self.close()

    def _take_lock(self) -> None:
        """Takes a POSIX lock, since a flock(2) lock would be kept by forked workers that outlive this process."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "just starting"
            os.close(descriptor)
            if not isinstance(error, (BlockingIOError, PermissionError)):
                return None  # the file system does not support locks
            problem = f"another process is training in this directory ({holder})"
            raise UserError(f"{self.root}: {problem}; wait for it, stop it, or use another --workdir.") from None
        if not os.fstat(descriptor).st_nlink:  # a run that was rejected has just removed the lock file
            os.close(descriptor)
            return self._take_lock()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = descriptor
        return None

    # --- starting and continuing --------------------------------------------------------------------------

    def has_checkpoints(self) -> bool:
        """Returns whether any checkpoint was completed, even if it is damaged now."""
        return self.checkpoints_dir.is_dir() and any(TORN not in each.name for each in self.checkpoints_dir.iterdir())

    def _has_begun(self) -> bool:
        return self.has_checkpoints() or any(self._metric_lines())

    def _withdraw(self) -> None:
        """Removes a new run after a process has failed. By then, this process may already have released the lock."""
        with contextlib.suppress(UserError, OSError):
            if self._lock is None:
                self._take_lock()
            self._discard_unless_begun()

    def _discard_unless_begun(self) -> None:
        """Removes everything that a run wrote before its first step, so that a new run can start in the directory."""
        if self._lock is None or self._has_begun():
            return
        for path in (*(self.root / name for name in TOKENIZERS), self.tensorboard_dir, self.checkpoints_dir):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.config_path, self.metrics_path, self.root / ".lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # raised if a directory is not empty
            for path in self._made:
                path.rmdir()

    def _remove_leftovers(self) -> None:
        """Removes files left by killed processes. No running process has temporary files directly in `root`."""
        for each in self.root.iterdir():
            if each.name != ".lock" and LEFTOVER.fullmatch(each.name):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        for directory in (self.root, *self.root.glob("eval/*")):
            remove_leftovers(directory)

    def _check_continues(self, config: Config) -> None:
        """Raises UserError if the run was started with other settings, or if its files are inconsistent."""
        old, new = self._load_config(), config
        for name in fingerprint.DERIVED_FROM_DATA:
            a, b = attrgetter(name)(old), attrgetter(name)(new)
            if not (a and b):  # the old or the new value has not been derived yet
                old, new = (replace_settings(each, {name: a or b}) for each in (old, new))
        if new.train.num_epochs == old.train.num_epochs > 0:  # the number of steps is the same too
            for name, unknown in fingerprint.DERIVED_FROM_EPOCHS.items():
                if attrgetter(name)(new) == unknown:
                    new = replace_settings(new, {name: attrgetter(name)(old)})
        a, b = old.to_dict(), new.to_dict()
        # A run may be extended only if the learning rate of every earlier step stays the same.
        unit = "num_epochs" if new.train.num_epochs else "num_steps"
        longer = getattr(new.train, unit) > getattr(old.train, unit) > 0
        if longer and not new.optimizer.schedule_entry.decays_last:
            for each in (a, b):
                del each["train"]["num_steps"], each["train"]["num_epochs"]
            if not new.optimizer.schedule_entry.has_end:
                del a["optimizer"]["decay_steps"], b["optimizer"]["decay_steps"]
        lines = differences_affecting(fingerprint.FOR_TRAINING, Config, a, b)
        if new.data.stateful:  # eval.batch_size affects the metrics, which are compared over the whole run
            before, after = ({"eval.batch_size": each.eval.batch_size} for each in (old, new))
            lines += differences(before, after)
        if lines and self._has_begun():
            changed, advice = {line.split(":")[0] for line in lines}, ""
            if longer and changed <= {"optimizer.decay_steps", "optimizer.warmup_steps"}:
                keep = " ".join(f"--config.{name}={attrgetter(name)(old)}" for name in sorted(changed))
                advice = f" To train longer at the final learning rate of this run, add {keep}."
            listed = fingerprint.listed(lines, 8, max(40, 240 // len(lines)))
            advice = f"Start a new run in another --workdir, or restore the old values to continue this run.{advice}"
            raise UserError(f"{self.root} holds a run with another config ({listed}). {advice}")
        if self.has_checkpoints():
            self.moved = differences_affecting({"location"}, Config, a, b)
            self._check_records(new, fingerprint.FOR_TRAINING)
            for name in self._tokenizers(config):
                if not (self.root / name).is_dir():
                    raise UserError(f"{self.root / name} is missing, but the run has checkpoints; restore it.")

    def _tokenizers(self, config: Config) -> tuple[str, ...]:
        return TOKENIZERS if config.data.separate_vocabularies else TOKENIZERS[:1]

    def _check_records(self, config: Config, effects: Collection[str], data: Mapping[str, str] | None = None) -> None:
        """Raises UserError if the config, a tokenizer or the data differs from what a checkpoint was trained with."""
        found = fingerprint.recorded_settings(config)
        tokenizers = {name: self._tokenizer_fingerprint(name) for name in self._tokenizers(config)}
        with self.open_checkpoints(config) as checkpoints:
            for step, record in checkpoints.records():
                checkpoint, metadata = self.checkpoints_dir / str(step), record["metadata"]
                fingerprint.check_settings(checkpoint, metadata, found, effects, self.config_path)
                for name, each in tokenizers.items():
                    if each is not None:
                        fingerprint.check_tokenizer(checkpoint, metadata, name, each, self.root / name)
                if data is not None:
                    fingerprint.check_data(checkpoint, metadata, data, self.root)

    def _tokenizer_fingerprint(self, name: str) -> str | None:
        """Returns the fingerprint stored with a tokenizer, or None if the fingerprint cannot be read."""
        try:
            return str(parse_json(read_file(self.root / name / INFO_FILE))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # loading the tokenizer verifies the fingerprint and raises a more helpful error

    # --- metrics ------------------------------------------------------------------------------------------

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the objects in metrics.jsonl, ignoring an incomplete last line.

        Raises UserError if any other line is invalid.
        """
        lines = list(self._metric_lines())
        for number, (_, values) in enumerate(lines, start=1):
            if values is None and number < len(lines):
                raise UserError(f"{self.metrics_path}, line {number}: this line is not a JSON object; remove it.")
        return [values for _, values in lines if values is not None]

    def train_seconds(self) -> float:
        """Returns the training time in seconds, from metrics.jsonl, including steps after the last checkpoint."""
        found = (values for _, values in self._metric_lines() if values is not None)
        return max((values.get("train/seconds", 0.0) for values in found), default=0.0)

    def truncate_metrics(self, step: int) -> None:
        """Drops incomplete lines and the lines of all steps after `step`, so that the run can resume from `step`."""
        lines = list(self._metric_lines())
        kept = [line for line, values in lines if values is not None and values.get("step", -1) <= step]
        if len(kept) < len(lines):
            with storing(self.metrics_path), replacing(self.metrics_path, durable=True) as temporary:
                temporary.write_bytes(b"".join(kept))

    def _metric_lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Yields each line of metrics.jsonl with its parsed object, or None if the line is incomplete or invalid."""
        try:
            content = read_file(self.metrics_path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.metrics_path} cannot be read: {error.strerror}; restore it.") from None
        for line in content.splitlines(keepends=True):
            try:
                values = parse_json(line)
            except ValueError:
                values = None
            yield line, values if isinstance(values, dict) and line.endswith(b"\n") else None
