"""Command-line handling shared by all commands: flags, the config file, one-line errors and exit statuses."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from lm.config import Config
from lm.config.schema import build, check_name, describe_settings
from lm.config.unused import unused
from lm.errors import DONE, USER_ERROR, UserError, as_user_error

LONGEST_NUMBER = 18  # maximum number of digits of a step number or seed on the command line
flags.disclaim_key_flags()  # makes --help list the flags defined here among those of the command


def define_config_flag() -> None:
    """Defines the flag --config=FILE.py[:ARG], which allows overrides of the form --config.a.b=value."""
    config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py[:ARG].", lock_config=True)


def config_from_flags() -> Config | None:
    """Returns the validated config given by --config and its overrides, or None if the flag is absent.

    Settings that have no effect are reported on stderr.
    """
    flag = flags.FLAGS["config"]
    if not flag.present:
        return None
    if not isinstance(flag.value, ml_collections.ConfigDict):
        path = config_flags.get_config_filename(flag).partition(":")[0]
        if error := getattr(flag.value, "_error", None):
            raise _unreadable(path, error)  # an OSError that ml_collections deferred
        raise UserError(f"{path}: get_config() returned {flag.value!r}; end this function with `return config`.")
    values = flag.value.to_dict()
    config = Config.from_dict(values)
    for line in unused(build(Config, values)):
        print(f"note: {line}.", file=sys.stderr)
    return config


def define_path(name: str, doc: str, default: str | None = None) -> None:
    """Defines a flag that names a file or directory and must not be empty."""
    flags.DEFINE_string(name, default, doc)
    flags.register_validator(name, lambda value: value != "", "the value is empty; specify a value, or omit the flag")


def define_speed_flags() -> None:
    """Defines the flags for 8-bit matrices and for speculative decoding. `check_speed_flags` checks them."""
    doc = "Round the model's weight matrices to 8 bits, which saves memory and, on accelerators, may save time."
    flags.DEFINE_bool("int8", False, f"{doc} The outputs change slightly.")
    define_path("draft", "Run directory of a smaller decoder that drafts tokens, which the main model then checks.")
    flags.DEFINE_integer("draft_tokens", 4, "Number of tokens to draft at a time with --draft.", lower_bound=1)


def check_speed_flags() -> None:
    """Raises UserError if --draft_tokens was given without --draft."""
    if flags.FLAGS["draft_tokens"].present and flags.FLAGS["draft"].value is None:
        raise UserError("--draft_tokens applies only to speculative decoding; give --draft too.")


def define_step_flag() -> None:
    """Defines the flag --step, which chooses a checkpoint."""
    doc = "Checkpoint step to use: best, latest or a number. If best_metric was never measured, best means latest."
    flags.DEFINE_string("step", "best", doc)
    flags.register_validator("step", _is_step, "use best, latest or a step number")


def define_process_flags() -> None:
    """Defines the flags that connect several processes. `lm.parallel.distributed` reads them."""
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0; needed to run several processes, except on Slurm or Cloud TPU."
    )
    flags.DEFINE_integer("num_processes", 1, "With --coordinator: the number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_id", 0, "With --coordinator: the index of this process, from 0.")
    flags.DEFINE_integer("startup_timeout", 300, "Seconds to wait for the other processes at start-up.", lower_bound=1)


def _is_step(value: str) -> bool:
    return value in ("best", "latest") or (value.isdecimal() and len(value) <= LONGEST_NUMBER)


def run(main: Callable[[], int], *, outlives_output: bool = False) -> None:
    """Parses the command line, calls `main` and exits with the status that it returns.

    A UserError or a system error is printed as one line on stderr, and the exit status is 1. Any other exception is a
    bug, so its traceback is printed. If a reader of standard output, such as `head`, closes the pipe, the command exits
    with status 0; if `outlives_output` is true, it finishes its work first.
    """
    _open_streams(outlives_output)
    try:
        status = _status(main)
        sys.stdout.flush()
    except Exception as error:
        explained, status = as_user_error(error), USER_ERROR
        if isinstance(error, BrokenPipeError) and not outlives_output:
            status = DONE
        elif explained is None or (os.environ.get("LM_DEBUG") and explained is not error):
            raise
        else:
            print("error:", *str(explained).split(), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # reported above; another flush at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _status(main: Callable[[], int]) -> int:
    if {"--help", "-help", "-h", "--helpfull"} & set(sys.argv[1:]):
        print(_help("--helpfull" in sys.argv[1:]))
        return DONE
    with _one_line_flag_errors():
        rest = flags.FLAGS(sys.argv, known_only=False)
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; all arguments must be of the form --name=value (see --help).")
    try:
        return main()
    except SystemExit as error:  # rich raises it if the output is closed
        if isinstance(error.__context__, BrokenPipeError):
            return DONE
        raise


class _Unread(io.FileIO):
    """A standard output stream that discards everything written after its reader has closed it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)


def _open_streams(outlives_output: bool) -> None:
    """Replaces closed streams, and escapes characters that a stream's encoding, such as ASCII, cannot represent."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as in `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            if name == "stdout" and outlives_output and stream is sys.__stdout__:
                binary = io.BufferedWriter(_Unread(stream.fileno(), "w", closefd=False))
                sys.stdout = io.TextIOWrapper(binary, stream.encoding, line_buffering=stream.line_buffering)
            getattr(sys, name).reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _one_line_flag_errors() -> Iterator[None]:
    """Converts flag errors from absl and ml_collections within the `with` block into UserErrors."""
    path = ""
    for argument, after in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=False):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            value = value if equals else after
            path = value.partition(":")[0]
            if not Path(path).is_file():
                near = sorted(str(each) for each in Path("configs").glob("*.py") if each.stem != "__init__")
                problem = f"--config={value}: there is no file {path}" if path else "--config=: no file is given"
                raise UserError(f"{problem}; available configs: {', '.join(near) or 'none in configs/'}.")
        elif name.startswith("config."):
            check_name(Config, name.removeprefix("config.").split("[")[0])
            if "config" in flags.FLAGS and not any(each.lstrip("-").partition("=")[0] == "config" for each in sys.argv):
                raise UserError(f"--{name} overrides a setting of a config file; also pass --config=FILE.py.")
    writes_bytecode = sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True  # leave no __pycache__ next to the config file
        yield
    except Exception as error:
        if os.environ.get("LM_DEBUG"):
            raise
        if isinstance(error, KeyError) and not _line_in_file(error, path):
            raise UserError(f"--config: this config has no section named {error.args[0]}.") from error
        if isinstance(error, flags.Error) and "parsing config file" not in str(error):
            raise UserError(f"{error} (see --help)") from error
        raise _unreadable(path, error) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode


def _unreadable(path: str, error: BaseException) -> UserError:
    """Builds the UserError for an error raised while running the config file at `path`."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    # ml_collections wraps errors and may raise another error while it handles one.
    found = [(each, line) for each in chain if (line := _line_in_file(each, path))]
    cause, where = found[-1] if found else (chain[-1], path)
    message = cause.msg if isinstance(cause, SyntaxError) else cause
    return UserError(f"{where}: {type(cause).__name__}: {message} (set LM_DEBUG=1 for the traceback)")


def _line_in_file(error: BaseException, path: str) -> str:
    """Returns "FILE, line N" if the traceback of the error includes the file at `path`, else ""."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}, line {lines[-1]}" if lines else ""


def _help(with_entries: bool) -> str:
    """Returns the help text: the docstring of the command, its flags, and every setting of the config.

    If `with_entries` is false, nothing slow is imported, but the entries of registries are omitted.
    """
    main = sys.modules["__main__"]
    own = flags.FLAGS.get_key_flags_for_module(main)
    lines = [(main.__doc__ or "").strip(), "", "Flags:"]
    lines += [f"  --{flag.name}={flag.default if flag.default is not None else ''}\n      {flag.help}" for flag in own]
    if "config" in flags.FLAGS:
        lines += ["", "Settings that can be given in a config file or as --config.NAME=VALUE:"]
        settings = describe_settings(Config, with_entries=with_entries)
        lines += [f"  {name} = {default!r}\n      {doc}" for name, default, doc in settings]
    return "\n".join(lines)
