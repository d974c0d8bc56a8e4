"""Reads a checkpoint, and raises Damage if its contents differ from what was saved.

Storage errors are converted into clear messages.
"""

from __future__ import annotations

import errno
import gc
import io
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from lm.checkpoints.integrity import check_same_tree, describe, is_described, json_hash
from lm.errors import UserError
from lm.files import parse_json, read_file

FORMAT = 1  # version of the record format; newer code may write a higher version
PART_BYTES = 2**28  # maximum number of bytes of parameters that are read at once
MOST_STEPS = 1000  # maximum number of steps listed when there are several processes
# System errors are recognised by these messages, because TensorStore sets no errno.
MACHINE_ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOMEM
MACHINE_TROUBLES = (*map(os.strerror, MACHINE_ERRORS), "RESOURCE_EXHAUSTED")

# Orbax uses the absl logger to report its own work and the traceback of each error that it also raises.
logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


def _without_late_callbacks(unraisable: Any) -> None:
    """Prints exceptions raised in callbacks, except those that TensorStore's threads report after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _print_unraisable(unraisable)


_print_unraisable, sys.unraisablehook = sys.unraisablehook, _without_late_callbacks


class Damage(Exception):
    """Raised if the contents of a checkpoint differ from what was saved. The message describes the difference."""


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Returns the JSON record of a checkpoint.

    Raises Damage if the record is damaged, or UserError if newer code wrote it.
    """
    path = checkpoint / "record" / "metadata"
    stored = parse_json(read_file(path))
    if not isinstance(stored, dict) or stored.get("sha256") != json_hash(stored.get("content")):
        raise Damage("record/metadata does not match its hash")
    content = stored["content"]
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise Damage("record/metadata has no format")
    if content["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer version of this code; use that version.")
    for key, kind in {"step": int, "metadata": dict, "metrics": dict, "leaves": dict}.items():
        if not isinstance(content.get(key), kind):
            raise Damage(f"record/metadata has no {key}")
    if not all(map(is_described, content["leaves"].values())):
        raise Damage("record/metadata describes an array without its shape, dtype or checksum")
    if not all(isinstance(each, dict) for each in (content["metadata"].get(name, {}) for name in ("config", "data"))):
        raise Damage("record/metadata has no valid settings or fingerprints")
    if not all(isinstance(each, (int, float)) for each in content["metrics"].values()):
        raise Damage("record/metadata has a metric that is not a number")
    if content["step"] != int(checkpoint.name):
        raise Damage(f"its record belongs to step {content['step']}")
    return content


def read_arrays(checkpoint: Path, record: dict[str, Any], abstract: Any, *, partial: bool) -> Any:
    """Returns the arrays of a checkpoint or, if `partial` is true, of the part that `abstract` describes.

    Raises Damage if the arrays differ from the saved ones, or UserError if the tree differs from `abstract`.
    """
    wanted = describe(abstract)
    top = next(iter(abstract)) + "/" if partial else ""
    saved = {path: leaf for path, leaf in record["leaves"].items() if path.startswith(top)}
    check_same_tree(checkpoint, saved, wanted)

    # This uses Orbax's handler rather than its manager. While reading, a manager waits for all processes, possibly for
    # minutes if one of them has found a damaged file. A manager also assumes that it owns the directory.
    def arrays() -> Any:
        # Without a limit, all arrays are read at once, and buffers take as much memory as the arrays themselves. The
        # limit must exceed the largest array.
        leaves = jax.tree.leaves(abstract)
        limit = 1 + max((math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves), default=0) // 10**9
        with closing(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit)) as handler:

            def restore(item: Any) -> Any:
                restore_args = jax.tree.map(_restore_args, item)
                args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
                return handler.restore(epath.Path(checkpoint / "state"), args=args)

            if not partial:
                return restore(abstract)
            parts = map(restore, _in_parts(abstract))  # because Orbax ignores the limit for NumPy arrays
            return unflatten_dict({path: leaf for part in parts for path, leaf in flatten_dict(part).items()})

    tree = in_all_processes(checkpoint, arrays, "arrays")
    found = describe(tree, with_sums=True)
    for path, leaf in saved.items():
        if found.get(path) != leaf:
            raise Damage(f"{path} differs from the saved array")
    return tree


def _in_parts(abstract: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Divides a nested dict of abstract arrays into parts of at most PART_BYTES; a larger array is one part."""
    part: dict[tuple[str, ...], Any] = {}
    size = 0
    for path, leaf in flatten_dict(abstract).items():
        nbytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        if part and size + nbytes > PART_BYTES:
            yield unflatten_dict(part)
            part, size = {}, 0
        part[path], size = leaf, size + nbytes
    yield unflatten_dict(part)


def in_all_processes(checkpoint: Path, read: Callable[[], Any], what: str) -> Any:
    """Calls `read`. If it fails in one process, all raise Damage, so that none hangs in a collective operation."""
    result, problem, trouble = None, "", ""
    with hushed():
        try:
            result = read()
        except (UserError, MemoryError, AssertionError):
            raise
        except Exception as error:  # damaged files can cause any kind of error
            problem, trouble = f"{what}: {first_line(error)}", machine_trouble(error)
        if problem:  # TensorStore's other reads fail later, and asyncio prints their errors on garbage collection
            time.sleep(0.2)
            gc.collect()
    if trouble:
        raise UserError(f"{checkpoint}: the checkpoint cannot be read: {trouble}.")
    if jax.process_count() > 1:
        failed = np.atleast_1d(multihost_utils.process_allgather(np.array(bool(problem))))
        if failed.any() and not problem:
            problem = f"{what}: damage was found by process {int(np.argmax(failed))}"
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


def machine_trouble(error: BaseException) -> str:
    """Returns the system error named in the message of `error`, or "" if there is none."""
    return next((each for each in MACHINE_TROUBLES if each in str(error)), "")


def agreed(steps: Sequence[int]) -> list[int]:
    """Returns the steps found by the first process, because other processes may find different steps during a save."""
    if jax.process_count() == 1:
        return list(steps)
    row = np.full(MOST_STEPS, -1)
    row[: len(steps[:MOST_STEPS])] = steps[:MOST_STEPS]
    return [int(step) for step in multihost_utils.broadcast_one_to_all(row) if step >= 0]


def silence_libraries() -> None:
    """Suppresses the output of Orbax's and TensorStore's threads after a failed save, until the process ends."""
    logging.getLogger("asyncio").disabled = True
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None


@contextmanager
def hushed() -> Iterator[None]:
    """Suppresses tracebacks that libraries print instead of raising an error."""
    asyncio_log = logging.getLogger("asyncio")
    was = asyncio_log.disabled, sys.unraisablehook
    asyncio_log.disabled, sys.unraisablehook = True, lambda _: None
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        asyncio_log.disabled, sys.unraisablehook = was
