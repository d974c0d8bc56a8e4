"""Reading checkpoints: everything that cannot be what was saved raises Damage."""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
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


def first_intact(
    directory: Path, candidates: Sequence[int], item: Any, *, among: Sequence[int] | None, partial: bool
) -> tuple[Any, dict[str, Any], list[int]]:
    """Returns tree and record of the first intact checkpoint, and the damaged steps before it.

    Each damaged one is reported on stderr. All processes call it.

    Args:
        candidates: steps to try, in order.
        item: the abstract tree, or a function from the record to it.
        among: all existing steps, if the one candidate is the only one to try; None to try the next ones.
        partial: the tree is one part of the state, as {"params": ...}.

    Raises UserError if no candidate is intact.
    """
    damaged: list[int] = []
    for step in candidates:
        try:
            record = in_all_processes(directory, functools.partial(read_record, directory, step), "record")
            tree = read_arrays(directory, step, record, item(record) if callable(item) else item, partial=partial)
        except Damage as damage:
            where = directory / str(step)
            if among is not None:
                known = ", ".join(map(str, among))
                raise UserError(f"{where}: this checkpoint is damaged ({damage}); there are {known}.") from None
            damaged.append(step)
            if jax.process_index() == 0:
                print(f"Checkpoint {where} is damaged ({damage}).", file=sys.stderr)
            continue
        if damaged and jax.process_index() == 0:
            print(f"Using the checkpoint of step {step} instead.", file=sys.stderr)
        return tree, record, damaged
    raise UserError(
        f"{directory}: no checkpoint is intact (damaged: {', '.join(map(str, damaged))}); "
        "restore the directory from a copy, or start in another --workdir."
    )


def read_record(directory: Path, step: int) -> dict[str, Any]:
    """Returns the verified JSON beside the arrays. Raises Damage, or UserError if a newer version wrote it."""
    path = directory / str(step) / "record" / "metadata"
    stored = json.loads(path.read_bytes())
    if not isinstance(stored, dict) or stored.get("sha256") != json_hash(stored.get("content")):
        raise Damage("record/metadata does not match its hash")
    content = stored["content"]
    if content["format"] > FORMAT:
        raise UserError(f"{path}: written by a newer version of this code; use that one.")
    if content["step"] != step:
        raise Damage(f"its record belongs to step {content['step']}")
    return content


def read_arrays(directory: Path, step: int, record: dict[str, Any], abstract: Any, *, partial: bool) -> Any:
    """Returns the tree of one checkpoint. Raises Damage, or UserError if it is not the requested tree."""
    wanted = describe(abstract)
    top = next(iter(abstract)) + "/" if partial else ""
    saved = {path: leaf for path, leaf in record["leaves"].items() if path.startswith(top)}
    check_same_tree(directory / str(step), saved, wanted)

    # Orbax's handler, not its manager: while reading, a manager waits for all processes, for minutes if one of them
    # has found a damaged file. It also assumes that it owns the directory.
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
    """Returns `read()`, or raises Damage in every process if it failed in any: none may enter a collective alone."""
    result, problem, outside = None, "", ""
    with hushed():
        try:
            result = read()
        except (UserError, MemoryError, AssertionError):
            raise
        except Exception as error:  # anything that broken files lead to
            problem, outside = f"{what}: {first_line(error)}", machine_trouble(error)
        if problem:  # TensorStore's other reads fail later, and asyncio prints each when it is garbage-collected
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
