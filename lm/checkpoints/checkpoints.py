"""Checkpoints of the training state, written and read by Orbax and checked by sums of our own.

Layout, below `checkpoints/` in the run directory:

    <step>/state/             every array, as Orbax (OCDBT) writes it; opens on any mesh
    <step>/record/metadata    JSON: metadata, metrics, and of every leaf its path, shape, dtype and sum
    damaged-<step>/           a checkpoint that failed its check, set aside when training resumed

Orbax writes into a temporary directory and renames it when all is there, so a torn checkpoint never has a
step for its name. Against damage that comes later (a lost file, flipped bits) the record holds a sum of
every leaf and a hash of itself: what is restored is equal to the bit to what was saved, or it is reported.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lm.checkpoints.integrity import describe, json_hash, leaf_sums, nested
from lm.checkpoints.reading import FORMAT, Damage, first_line, in_all_processes, read_arrays, read_record
from lm.checkpoints.storage_errors import machine_trouble
from lm.config import CheckpointConfig
from lm.errors import UserError

TORN = ".orbax-checkpoint-tmp"  # in the name of a directory that Orbax has not finished


@dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` gives."""

    state: Any  # the pytree of the abstract state, its leaves jax.Array on the shardings asked for
    metadata: dict[str, Any]  # as given to `save`
    step: int


class Checkpoints:
    """The checkpoints in one directory.

    For training (`read_only=False`) all processes open it together; torn leftovers of a killed run are
    removed. A read-only opening never writes: it may look on while a training saves.

    Args:
        directory: the run directory's `checkpoints`; created if need be, not when read_only.
        settings: how many to keep, and the metric of `best`; None for the defaults.
        read_only: for evaluation, generation and export.

    Raises:
        UserError: the directory can't be used.
    """

    def __init__(self, directory: Path, settings: CheckpointConfig | None = None, read_only: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self._settings = settings or CheckpointConfig()
        self._manager: ocp.CheckpointManager | None = None
        self._metrics: dict[int, dict[str, float]] = {}  # of the step being written, not yet on disk
        self._saving: int | None = None
        if read_only:
            return
        with self._storage_errors("opened"):
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_torn()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self),
                # Were it made in the background and failed, Orbax's threads would wait for it for ten minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                lightweight_initialize=True,  # nothing of Orbax's own metadata is needed
                save_root_metadata=False,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    # --- writing ------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], metrics: Mapping[str, float]) -> bool:
        """Starts to save; returns when `state` is copied and its buffers may be donated. All processes call it.

        A save that is still under way is waited for first, and its error, if it had one, is raised.

        Args:
            step: names the checkpoint. One that is already there is left alone.
            state: pytree of jax.Array.
            metadata: JSON values, given back by `restore`.
            metrics: only a checkpoint that has a finite `settings.best_metric` can be the best.

        Returns:
            Whether a save was started.

        Raises:
            UserError: disk full, permission denied and the like. Earlier checkpoints are intact.
        """
        assert self._manager is not None, "opened read-only"
        self.wait()
        if step in self._manager.all_steps():
            return False
        values = {name: float(value) for name, value in metrics.items()}
        content = {
            "format": FORMAT,
            "step": step,
            "metadata": dict(metadata),
            "metrics": values,
            "leaves": describe(state, sums=leaf_sums(state)),
        }
        self._metrics[step] = values
        self._saving = step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave({"content": content, "sha256": json_hash(content)}),
        )
        with self._storage_errors(f"saved (step {step})"):
            # force: against Orbax's rule to save no step below the latest one; it never overwrites.
            self._manager.save(step, args=args, force=True)
        return True

    def wait(self) -> None:
        """Returns when nothing is being written. Raises UserError if the last save failed."""
        if self._manager is None or self._saving is None:
            return
        with self._storage_errors(f"saved (step {self._saving})"):
            self._manager.wait_until_finished()
        self._metrics.pop(self._saving)
        self._saving = None

    def check(self) -> None:
        """Raises UserError if a save has failed meanwhile. Never waits: cheap enough for every step."""
        if self._manager is not None and self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the last save, and raises its error."""
        if self._manager is None:
            return
        try:
            self.wait()
        finally:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except UserError as save_error:
            if error is None:
                raise
            print(save_error, file=sys.stderr)  # the first error is the one to raise

    # --- looking ------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending; whether they are intact only reading them tells."""
        try:
            names = [each.name for each in self.directory.iterdir() if each.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError:
            raise UserError(f"{self.directory}: permission denied; check who owns it.") from None
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def latest(self) -> int | None:
        """The newest finished step, None without any."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step that is best by `settings.best_metric` (of equals the newest); None if none has that metric."""
        return next(iter(self._best_first(self.steps())), None)

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given. UserError if there is no such step or it is damaged."""
        return self._checked_record(step)["metadata"]

    def metrics(self, step: int) -> dict[str, float]:
        """What `save` was given. UserError if there is no such step or it is damaged."""
        return self._checked_record(step)["metrics"]

    # --- reading ------------------------------------------------------------------------------------------

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
        """Reads a checkpoint onto the shardings of `abstract_state`, whatever mesh wrote it. All processes call it.

        Without `step` it is the newest that is intact: each damaged one is reported by a line on stderr and,
        unless read-only, set aside once an older one could be read.

        Args:
            abstract_state: the pytree as saved, its leaves jax.ShapeDtypeStruct with a sharding.
            step: this one and no other.

        Raises:
            UserError: there is none, or none is intact, or the tree, a shape or a dtype is another.
        """
        assert all(leaf.sharding is not None for leaf in jax.tree.leaves(abstract_state)), "give every leaf a sharding"
        candidates = self._candidates(step)
        state, record = self._first_intact(candidates, abstract_state, exact=step is not None, partial=False)
        return Restored(state, record["metadata"], record["step"])

    def restore_params(
        self, abstract_params: Any = None, step: int | Literal["best"] | None = None, ema: bool = False
    ) -> tuple[Any, int]:
        """Reads the parameters and nothing else of the state.

        Args:
            abstract_params: nested dict of jax.ShapeDtypeStruct with shardings; None for NumPy arrays.
            step: None for the newest; "best" for the best, or the newest if none has the metric. For both,
                a damaged checkpoint is reported on stderr and the next one used. A number: this one only.
            ema: their moving average, if the state holds one.

        Returns:
            The parameters as a nested dict, and the step they are of.

        Raises:
            UserError: as `restore`.
        """
        candidates = self._candidates(None if step == "best" else step)
        if step == "best":
            best = self.best()
            candidates = [each for each in (best,) if each is not None] + [s for s in candidates if s != best]

        def item(record: dict[str, Any]) -> Any:
            average = ema and any(path.startswith("ema/") for path in record["leaves"])
            name = "ema" if average else "params"
            return {name: nested(record["leaves"], name) if abstract_params is None else abstract_params}

        exact = step is not None and step != "best"
        tree, record = self._first_intact(candidates, item, exact=exact, partial=True)
        ((_, params),) = tree.items()
        return params, record["step"]

    def _candidates(self, step: int | None) -> list[int]:
        """Steps to try, in this order."""
        self.wait()
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.directory}: there is no checkpoint; train first, or check the path.")
        if step is None:
            return steps[::-1]
        if step not in steps:
            raise UserError(f"{self.directory}: there is no checkpoint of step {step}; {_there_are(steps)}.")
        return [step]

    def _first_intact(
        self, candidates: Sequence[int], item: Any, *, exact: bool, partial: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Tree and record of the first candidate that is intact. `item`: an abstract tree, or record -> tree."""
        damaged: list[int] = []
        for step in candidates:
            try:
                record = in_all_processes(
                    self.directory, functools.partial(read_record, self.directory, step), "record"
                )
                tree = read_arrays(
                    self.directory, step, record, item(record) if callable(item) else item, partial=partial
                )
            except Damage as damage:
                if exact:
                    where = f"{self.directory / str(step)}: this checkpoint is damaged ({damage})"
                    raise UserError(f"{where}; {_there_are(self.steps())}.") from None
                damaged.append(step)
                if jax.process_index() == 0:
                    print(f"Checkpoint {self.directory / str(step)} is damaged ({damage}).", file=sys.stderr)
                continue
            if damaged and jax.process_index() == 0:
                print(f"Using the checkpoint of step {step} in its place.", file=sys.stderr)
            self._set_aside(damaged)
            return tree, record
        raise UserError(
            f"{self.directory}: no checkpoint is intact (damaged: {', '.join(map(str, damaged))}); "
            "restore the directory from a copy, or start in another --workdir."
        )

    def _checked_record(self, step: int) -> dict[str, Any]:
        try:
            return read_record(self.directory, self._candidates(step)[0])
        except (Damage, OSError, ValueError) as error:
            where = self.directory / str(step)
            raise UserError(f"{where}: this checkpoint is damaged ({first_line(error)}).") from None

    # --- keeping ------------------------------------------------------------------------------------------

    def _best_first(self, steps: Sequence[int]) -> list[int]:
        """Those of `steps` that have the metric, the best first."""
        values = {}
        for step in steps:
            try:
                metrics = self._metrics[step] if step in self._metrics else read_record(self.directory, step)["metrics"]
            except (Damage, OSError, ValueError):
                continue  # damaged: `restore` reports it
            value = metrics.get(self._settings.best_metric, math.nan)
            if math.isfinite(value):
                values[step] = value
        sign = -1 if self._settings.highest_is_best else 1
        return sorted(values, key=lambda step: (sign * values[step], -step))

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Of `steps`, in the order of saving, those to keep."""
        return set(steps[-self._settings.keep_latest :]) | set(self._best_first(steps)[: self._settings.keep_best])

    def _set_aside(self, damaged: Sequence[int]) -> None:
        if self._manager is None or not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                aside = self.directory / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)  # one from an earlier time
                os.replace(self.directory / str(step), aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()

    def _remove_torn(self) -> None:
        for each in self.directory.iterdir():
            if TORN in each.name:
                shutil.rmtree(each)

    @contextmanager
    def _storage_errors(self, what: str) -> Iterator[None]:
        """Turns an error of the file system into a UserError, and makes ready for another try."""
        try:
            yield
        except Exception as error:
            self._metrics.clear()
            self._saving = None
            reason = machine_trouble(error) or (first_line(error) if isinstance(error, OSError) else "")
            if not reason:
                raise
            if self._manager is not None:
                if jax.process_index() == 0 and self.directory.is_dir():
                    self._remove_torn()
                self._manager.reload()  # Orbax has forgotten those it was about to delete
            raise UserError(
                f"{self.directory}: the checkpoint could not be {what}: {reason}. Earlier checkpoints are intact; "
                "make room or give access, then run again."
            ) from error


class _LatestAndBest(preservation_policy.PreservationPolicy):
    """Keeps the latest and the best.

    Orbax's own BestN reads a metrics file that nothing checks, and keeps all checkpoints without metrics.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._checkpoints.kept([each.step for each in checkpoints])
        return [each.step in kept for each in checkpoints]


# --- words --------------------------------------------------------------------------------------------------


def _there_are(steps: Sequence[int]) -> str:
    return f"there are {', '.join(map(str, steps))}"
