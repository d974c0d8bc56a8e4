"""Reading one checkpoint, with every doubt about it told as Damage."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from lm.checkpoints.integrity import check_same_tree, describe, json_hash, leaf_sums
from lm.checkpoints.storage_errors import hushed, machine_trouble
from lm.errors import UserError

FORMAT = 1  # of the record; a higher one comes from a newer version of this code


class Damage(Exception):
    """A checkpoint that cannot be what was saved. The message says what was found."""


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """The checked JSON beside the arrays. Raises Damage, or UserError if a newer version wrote it."""
    path = directory / str(step) / "record" / "metadata"
    stored = json.loads(path.read_bytes())
    if not isinstance(stored, dict) or stored.get("sha256") != json_hash(stored.get("content")):
        raise Damage("record/metadata does not have the hash that it tells")
    content = stored["content"]
    if content["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this code; use that one.")
    if content["step"] != step:
        raise Damage(f"its record is that of step {content['step']}")
    return content


def read_arrays(directory: Path, step: int, record: dict[str, Any], abstract: Any, *, partial: bool) -> Any:
    """The tree of one checkpoint. Raises Damage, or UserError if it is not the tree asked for."""
    wanted = describe(abstract)
    top = next(iter(abstract)) + "/" if partial else ""
    saved = {path: leaf for path, leaf in record["leaves"].items() if path.startswith(top)}
    check_same_tree(directory / str(step), saved, wanted)

    # Orbax's handler and not its manager: a manager waits for all processes in the middle, for minutes if
    # one of them has met a damaged file; it would also want to own the directory.
    def arrays() -> Any:
        handler = ocp.PyTreeCheckpointHandler()
        try:
            return handler.restore(
                epath.Path(directory / str(step) / "state"),
                args=ocp.args.PyTreeRestore(
                    item=abstract,
                    restore_args=jax.tree.map(_restore_args, abstract),
                    partial_restore=partial,
                ),
            )
        finally:
            handler.close()

    tree = in_all_processes(directory, arrays, "arrays")
    found = describe(tree, sums=leaf_sums(tree))
    for path, leaf in saved.items():
        if found.get(path) != leaf:
            raise Damage(f"{path} is not what was saved")
    return tree


def in_all_processes(directory: Path, read: Callable[[], Any], what: str) -> Any:
    """`read()`, or Damage in every process if in any of them it failed: none may go on to a collective alone."""
    result, problem, outside = None, "", ""
    with hushed():
        try:
            result = read()
        except (UserError, MemoryError, AssertionError):
            raise
        except Exception as error:  # whatever broken files lead to
            problem, outside = f"{what}: {first_line(error)}", machine_trouble(error)
        if problem:  # TensorStore's other reads still fail, and asyncio complains about each when it is collected
            time.sleep(0.2)
            gc.collect()
    if outside:
        raise UserError(f"{directory}: the checkpoint cannot be read: {outside}.")
    if jax.process_count() > 1:
        failed = np.atleast_1d(multihost_utils.process_allgather(np.array(bool(problem))))
        if failed.any() and not problem:
            problem = f"{what}: found by process {int(np.argmax(failed))}"
    if problem:
        raise Damage(problem)
    return result


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if leaf.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line[:160] if isinstance(error, (OSError, Damage)) else f"{type(error).__name__}: {line[:160]}"
