"""Checkpoints of the training state, written and read by Orbax and verified with our own checksums.

Layout of `checkpoints/` in the run directory:

    <step>/state/             all arrays, in Orbax's OCDBT format, which can be read onto any mesh
    <step>/record/metadata    JSON: metadata, metrics, and the path, shape, dtype and checksum of every leaf
    damaged-<step>/           a checkpoint that failed verification and was set aside when training resumed

Orbax writes to a temporary directory and renames it when the checkpoint is complete, so <step>/ is never incomplete.
Thanks to the checksums and the hash of the record, a restored state is either bit-identical to the saved one or
reported as damaged.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lm.checkpoints import reading
from lm.checkpoints.integrity import describe, json_hash, nested
from lm.checkpoints.keeping import LatestAndBest, best_first, remove_torn
from lm.config import CheckpointConfig
from lm.errors import UserError

# An array is compressed chunk by chunk, and the result is held in memory until a file of this size can be written.
CHUNK_BYTES, FILE_BYTES = 2**21, 2**26
ATTEMPTS = 10  # number of attempts to read while a training run replaces checkpoints


class Restored(NamedTuple):
    state: Any  # has the requested shardings
    metadata: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints in one directory.

    In training, all processes must create this object together. The directory is created, and unfinished checkpoints of
    a killed run are removed. If `read_only` is true, nothing is written, so a training run may save at the same time.
    Raises UserError if the directory cannot be used.
    """

    def __init__(self, directory: Path, settings: CheckpointConfig | None = None, read_only: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self._settings = settings or CheckpointConfig()
        self._manager: ocp.CheckpointManager | None = None
        self._saving: tuple[int, dict[str, float]] | None = None  # step and metrics of the save in progress
        if read_only:
            return
        with self._storage_errors("opened"):
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                remove_torn(self.directory)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=LatestAndBest(self._metrics_of, self._settings),
                # If creating a directory in the background failed, Orbax's threads would hang for ten minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                lightweight_initialize=True,  # Orbax's own metadata is not needed
                save_root_metadata=False,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    # --- writing ------------------------------------------------------------------------------------------

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], metrics: Mapping[str, float]) -> bool:
        """Starts a save and returns once the buffers of `state` may be donated. All processes must call `save`.

        If an earlier save is still running, this method waits for it and raises any error from it. Returns False
        without saving if the step already has a checkpoint. `metadata` holds JSON values, which `restore` returns.
        Raises UserError for errors such as a full disk or denied access. Earlier checkpoints stay intact.
        """
        assert self._manager is not None, "opened read-only"
        self.wait()
        if step in self._manager.all_steps():
            return False
        values = {name: float(value) for name, value in metrics.items()}
        content = {
            "format": reading.FORMAT,
            "step": step,
            "metadata": dict(metadata),
            "metrics": values,
            "leaves": describe(state, with_sums=True),
        }
        self._saving = step, values
        in_chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), state)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, save_args=in_chunks, ocdbt_target_data_file_size=FILE_BYTES),
            record=ocp.args.JsonSave({"content": content, "sha256": json_hash(content)}),
        )
        with self._storage_errors(f"saved (step {step})"):
            # Orbax saves a step lower than the latest one only if `force` is true, and never overwrites a checkpoint.
            self._manager.save(step, args=args, force=True)
        return True

    def wait(self) -> None:
        """Waits until no save is in progress. Raises UserError if the last save failed."""
        if self._manager is None or self._saving is None:
            return
        with self._storage_errors(f"saved (step {self._saving[0]})"):
            self._manager.wait_until_finished()
        self._saving = None

    def check(self) -> None:
        """Raises UserError if the last save has failed. Never waits, so `check` may be called at every step."""
        if self._manager is not None and self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the last save and raises its error, if any."""
        if self._manager is None:
            return
        try:
            self.wait()
        finally:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.close()
        except UserError as save_error:
            if error is None:
                raise
            if not isinstance(error.__cause__, OSError):  # otherwise, both errors have the same cause
                print(save_error, file=sys.stderr)  # the first error is the one to raise

    # --- listing ------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, intact or not, in ascending order."""
        try:
            names = [each.name for each in self.directory.iterdir() if each.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError:
            raise UserError(f"{self.directory}: permission denied; check the owner of the directory.") from None
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def best(self) -> int | None:
        """Returns the step that is best by `settings.best_metric`, or None if no step has this metric.

        If several steps are equally good, returns the newest of them.
        """
        return next(iter(best_first(self.steps(), self._metrics_of, self._settings)), None)

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record of a step. Raises UserError if the record is damaged or there is no such step."""
        where = self.directory / str(self._candidates(step)[0])
        try:
            return reading.read_record(where)
        except (reading.Damage, OSError, ValueError) as error:
            raise UserError(f"{where}: this checkpoint is damaged ({reading.first_line(error)}).") from None

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (step, record) for each step whose record is intact, newest first."""
        for step in reversed(self.steps()):
            with contextlib.suppress(reading.Damage, OSError, ValueError):
                yield step, reading.read_record(self.directory / str(step))

    # --- reading ------------------------------------------------------------------------------------------

    def restore(self, abstract_state: Any) -> Restored:
        """Restores the newest intact checkpoint, even onto another mesh. All processes must call `restore`.

        The leaves of `abstract_state` are jax.ShapeDtypeStruct objects with shardings. Damaged checkpoints are reported
        on stderr. Once an older checkpoint has been read, the damaged ones are set aside, unless the directory is
        opened read-only. Raises UserError if there is no intact checkpoint, or if a path, shape or dtype differs from
        `abstract_state`.
        """
        assert all(leaf.sharding is not None for leaf in jax.tree.leaves(abstract_state)), "give every leaf a sharding"
        state, record = self._read(None, lambda _: abstract_state, partial=False)
        return Restored(state, record["metadata"], record["step"])

    def restore_params(
        self, abstract_params: Any = None, step: int | Literal["best"] | None = None, ema: bool = False
    ) -> tuple[Any, int]:
        """Returns only the parameters, as a nested dict, and their step. Raises the same errors as `restore`.

        Args:
            abstract_params: a nested dict of jax.ShapeDtypeStruct objects with shardings. If None, the parameters are
                returned as NumPy arrays.
            step: a number, None (the newest) or "best" (the newest if no checkpoint has the metric). Unless a number is
                given, damaged checkpoints are reported on stderr and skipped.
            ema: whether to return the moving average of the parameters instead, if the checkpoint contains one.
        """

        def item(record: dict[str, Any]) -> Any:
            average = ema and any(path.startswith("ema/") for path in record["leaves"])
            name = "ema" if average else "params"
            return {name: nested(record["leaves"], name) if abstract_params is None else abstract_params}

        tree, record = self._read(step, item, partial=True)
        ((_, params),) = tree.items()
        return params, record["step"]

    def average_params(
        self, count: int, abstract_params: Any = None, last: int | None = None, ema: bool = False
    ) -> tuple[Any, list[int]]:
        """Returns the mean of the parameters in the `count` latest checkpoints up to step `last`, and their steps.

        See Vaswani 2017, section 6.1. At most two parameter trees are in memory at a time. Raises UserError if there
        are too few checkpoints or if one is damaged.
        """
        for attempt in range(ATTEMPTS):
            steps = [step for step in reading.agreed(self.steps()) if last is None or step <= last]
            if len(steps) < count:
                up_to = "" if last is None else f" up to step {last}"
                problem = f"cannot average {count} checkpoints: the run has only {len(steps)}{up_to}"
                raise UserError(f"{self.directory}: {problem}; train with a larger config.checkpoint.keep_latest.")
            steps = steps[-count:]
            mean: Any = None
            try:
                for number, step in enumerate(steps, start=1):
                    params, _ = self.restore_params(abstract_params, step, ema=ema)
                    mean = params if mean is None else jax.tree.map(functools.partial(_mean, number), mean, params)
                break
            except UserError:
                if attempt == ATTEMPTS - 1 or set(steps) <= set(reading.agreed(self.steps())):
                    raise  # no training run has removed one of the steps, or this was the last attempt
        return mean, steps

    def _candidates(self, step: int | Literal["best"] | None) -> list[int]:
        self.wait()
        steps = reading.agreed(self.steps())
        if not steps:
            raise UserError(f"{self.directory}: there is no checkpoint; train first, or check the path.")
        if isinstance(step, int):
            if step not in steps:
                advice = f"choose one of {', '.join(map(str, steps))}."
                raise UserError(f"{self.directory}: there is no checkpoint for step {step}; {advice}")
            return [step]
        first = reading.agreed(best_first(steps, self._metrics_of, self._settings)[:1]) if step == "best" else []
        return [*first, *(each for each in steps[::-1] if each not in first)]

    def _read(
        self, step: int | Literal["best"] | None, item: Callable[[dict[str, Any]], Any], *, partial: bool
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the tree and record of the first intact candidate, and sets aside the damaged candidates before it.

        `item` builds the abstract tree from the record. If `partial` is true, the tree is only a part of the state,
        such as {"params": ...}. If a training run removes a checkpoint while it is being read, the candidates are
        listed again.
        """
        report = functools.partial(print, file=sys.stderr) if jax.process_index() == 0 else lambda _: None
        damaged: list[int] = []
        for _ in range(ATTEMPTS):
            listed = self._candidates(step)
            for each in listed:
                if each in damaged:
                    continue
                where = self.directory / str(each)
                try:
                    record = reading.in_all_processes(where, functools.partial(reading.read_record, where), "record")
                    tree = reading.read_arrays(where, record, item(record), partial=partial)
                except reading.Damage as damage:
                    if self._manager is None and self._is_being_removed(each, listed):
                        break
                    if isinstance(step, int):
                        advice = f"choose one of {', '.join(map(str, self.steps()))}."
                        raise UserError(f"{where}: this checkpoint is damaged ({damage}); {advice}") from None
                    damaged.append(each)
                    report(f"Checkpoint {where} is damaged ({damage}).")
                    continue
                if damaged:
                    report(f"Using the checkpoint for step {each} instead.")
                    self._set_aside(damaged)
                return tree, record
            else:
                break
        if not damaged:
            problem = "a training run keeps removing checkpoints before they can be read"
            raise UserError(f"{self.directory}: {problem}; try again.")
        steps, advice = ", ".join(map(str, damaged)), "restore the directory from a backup, or use another --workdir."
        raise UserError(f"{self.directory}: no checkpoint is intact (damaged: {steps}); {advice}")

    def _is_being_removed(self, step: int, listed: Sequence[int]) -> bool:
        """Waits for any removal in progress, then returns whether a training run has removed this checkpoint."""
        for _ in range(50):
            if step not in (steps := self.steps()) or steps == sorted(listed):
                break
            time.sleep(0.1)
        return bool(reading.agreed([int(step not in steps)])[0])

    def _set_aside(self, damaged: Sequence[int]) -> None:
        """Renames damaged checkpoints so that their steps can be saved again. Does nothing if opened read-only."""
        if self._manager is not None:
            for step in damaged if jax.process_index() == 0 else ():
                aside = self.directory / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).replace(aside)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()

    def _metrics_of(self, step: int) -> dict[str, float]:
        """Returns the metrics of a step, even while that step is being saved.

        Raises the same errors as `read_record`.
        """
        if self._saving is not None and self._saving[0] == step:
            return self._saving[1]
        return reading.read_record(self.directory / str(step))["metrics"]

    @contextmanager
    def _storage_errors(self, attempt: str) -> Iterator[None]:
        """Converts a file-system error in the `with` block into a UserError, after cleaning up for another attempt."""
        try:
            yield
        except Exception as error:
            self._saving = None
            reason = reading.machine_trouble(error) or (reading.first_line(error) if isinstance(error, OSError) else "")
            if not reason:
                raise
            reading.silence_libraries()
            if self._manager is not None:
                if jax.process_index() == 0 and self.directory.is_dir():
                    remove_torn(self.directory)
                self._manager.reload()  # Orbax has lost track of the checkpoints that it was about to delete
            advice = "Earlier checkpoints are intact; free some space or grant access, then run the command again."
            raise UserError(f"{self.directory}: the checkpoint could not be {attempt}: {reason}. {advice}") from error


def _mean(count: int, mean: Any, x: Any) -> Any:
    """Returns the mean of `count` arrays, given the last one (`x`) and the mean of the others."""
    return mean + (x - mean) / count  # exact if all arrays are equal
