"""The exception for errors that the user can fix."""


class UserError(Exception):
    """Invalid input: a config value, flag, data file, checkpoint, tokenizer or mesh.

    The message is one line that says what is wrong, where, and how to fix it. Commands print it without a traceback
    and exit with status 1 (see `lm/config/command.py`). Bugs raise other exceptions.
    """
