"""What every command shares: flags, the config file, one-line errors and exit statuses."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from lm.config import Config
from lm.errors import UserError
from lm.schema import check_name, describe_settings

DONE, USER_ERROR, SAVED_ON_SIGNAL = 0, 1, 75  # 75 is EX_TEMPFAIL: "run me again"


def define_config_flag() -> None:
    """Defines --config=FILE.py[:ARG] and its overrides, --config.a.b=value."""
    config_flags.DEFINE_config_file("config", None, "Experiment: configs/NAME.py[:ARG].", lock_config=True)


def config_from_flags() -> Config | None:
    """The checked config of --config and its overrides; None if the flag was not given."""
    values = flags.FLAGS["config"].value
    return None if values is None else Config.from_dict(values.to_dict())


def run(main: Callable[[], int]) -> None:
    """Parses the command line, calls `main` and exits with its status.

    A UserError becomes one line on stderr and exit status 1; anything else that is raised is a bug
    of ours and keeps its traceback.
    """
    if {"--help", "-help", "-h", "--helpfull"} & set(sys.argv[1:]):
        print(_help())
        sys.exit(DONE)
    try:
        with _one_line_flag_errors():
            rest = flags.FLAGS(sys.argv, known_only=False)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r} is not a flag; every argument has the form --name=value (see --help).")
        status = main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr, flush=True)
        status = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    sys.stdout.flush()
    sys.exit(status)


@contextlib.contextmanager
def _one_line_flag_errors() -> Iterator[None]:
    """Turns what absl and ml_collections say about bad flags into UserErrors, before anything runs."""
    for argument, after in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=False):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            value = value if equals else after
            path = value.partition(":")[0]
            if not Path(path).is_file():
                near = sorted(str(each) for each in Path("configs").glob("*.py") if each.stem != "__init__")
                raise UserError(
                    f"--config={value}: there is no file {path}; here there are {', '.join(near) or 'none'}."
                )
        elif name.startswith("config."):
            check_name(Config, name.removeprefix("config.").split("[")[0])
            if "config" in flags.FLAGS and not any(each.lstrip("-").partition("=")[0] == "config" for each in sys.argv):
                raise UserError(f"--{name} overrides a setting of a config file; give --config=FILE.py too.")
    try:
        yield
    except app.UsageError as error:
        raise UserError(f"{error}") from error
    except flags.Error as error:
        raise UserError(f"{_last_line(error)} (see --help)") from error
    except KeyError as error:
        raise UserError(f"--config: there is no part named {error.args[0]} in this config file.") from error
    except Exception as error:
        # Raised by the code of the config file.
        if os.environ.get("LM_DEBUG"):
            raise
        raise UserError(
            f"the config could not be read: {type(error).__name__}: {_last_line(error)} "
            "(set LM_DEBUG=1 for the traceback)"
        ) from error


def _help() -> str:
    """The command's own description, its flags, and every setting of the config."""
    main = sys.modules["__main__"]
    own = flags.FLAGS.get_key_flags_for_module(main)
    lines = [(main.__doc__ or "").strip(), "", "Flags:"]
    lines += [f"  --{flag.name}={flag.default if flag.default is not None else ''}\n      {flag.help}" for flag in own]
    if "config" in flags.FLAGS:
        lines += ["", "Settings, for a config file or as --config.NAME=VALUE:"]
        lines += [f"  {name} = {default!r}\n      {doc}" for name, default, doc in describe_settings(Config)]
    return "\n".join(lines)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
