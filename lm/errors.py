"""The exception for errors that the user can fix, and the exit statuses of the commands."""

DONE, USER_ERROR, SAVED_ON_SIGNAL = 0, 1, 75  # 75 is EX_TEMPFAIL: "run me again"


class UserError(Exception):
    """Raised for invalid input, such as a wrong config value, flag, data file, checkpoint, tokenizer or mesh.

    The message is one line that says what is wrong, where, and how to fix it. Commands print it without a traceback
    and exit with status 1 (see `lm/config/command.py`). Bugs raise other exceptions.

    Messages may quote files. If a message is longer than LONGEST characters, its middle is omitted.
    """

    LONGEST = 480  # commands prepend a few words; the whole line has at most 500 characters

    def __init__(self, message: str):
        if len(message) > self.LONGEST:
            message = f"{message[: self.LONGEST * 2 // 3]} ... {message[-self.LONGEST // 4 :]}"
        super().__init__(message)
