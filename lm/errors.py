"""The exception for errors that the user can fix."""


class UserError(Exception):
    """Bad input: a config value, a flag, a data file, a checkpoint, a tokenizer, a mesh.

    The message is one line that says what is wrong, where, and what to do about it. Commands print it without a
    traceback and exit with status 1 (see `lm/config/command.py`). Broken invariants of this code raise AssertionError.
    """
