"""The exception for errors that the user can fix, functions that create and extend it, and exit statuses."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator

DONE, USER_ERROR, SAVED_ON_SIGNAL = 0, 1, 75  # 75 is EX_TEMPFAIL: "run me again"


class UserError(Exception):
    """Raised for invalid input, such as a wrong config value, flag, data file, checkpoint, tokenizer or mesh.

    The message is one line that says what is wrong, where, and how to fix it. Commands print it without a traceback
    and exit with status 1 (see `lm/config/command.py`). Bugs raise other exceptions.

    Messages may quote the content of files. If a message is longer than LONGEST characters, its middle is omitted.
    """

    LONGEST = 480  # commands prepend a few words; the whole line has at most 500 characters

    def __init__(self, message: str):
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST * 2 // 3]} ... {message[-self.LONGEST // 4 :]}"
        super().__init__(message)


def as_user_error(error: BaseException) -> UserError | None:
    """Returns the UserError for a failure of the machine's storage, memory or accelerator. Returns None for a bug."""
    if isinstance(error, UserError):
        return error
    debug = "(set LM_DEBUG=1 for the traceback)"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return UserError(f"not enough memory ({reason}); reduce the batch size, sequence length or model size {debug}.")
    if isinstance(error, OSError) and error.errno:
        where = "reading or writing failed" if error.filename is None else error.filename
        return UserError(f"{where}: {error.strerror} {debug}.")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and os.path.join("jax", "_src", "xla_bridge.py") in frames[-1].filename:
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())[:250] or "no such device was found"
        return UserError(
            f"JAX_PLATFORMS={chosen}: this accelerator cannot be used ({reason}). Choose one that this machine has and "
            f"install its requirements-*.txt, or set JAX_PLATFORMS=cpu {debug}."
        )
    return None


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Prefixes the message of a UserError with `label`, e.g. a data source, unless it already begins with a setting."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("config."):
            raise
        raise UserError(f"{label}: {error}") from error
