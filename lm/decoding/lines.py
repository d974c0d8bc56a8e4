"""Lines of text in, a line or more for each out; a file of them is written whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lm.config import Config
from lm.errors import UserError
from lm.files import replacing, writing_flag


def read_lines(path: str, flag: str) -> list[str]:
    """The lines of a UTF-8 file, ended by LF or CR LF. Raises UserError, which names the flag."""
    content = b""
    try:
        content = Path(path).expanduser().read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"--{flag}={path}: is not UTF-8 (line {line}, byte {error.start}); convert it first.") from None
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # what follows the end of the last line is no line
    return [line.removesuffix("\r") for line in lines]


def prefix_of(config: Config) -> str:
    """What a run put before the sources that it was trained on. Raises UserError if that is not one text."""
    names: dict[str, list[str]] = {}
    for name, each in config.data.train.items():
        if each.weight > 0:
            names.setdefault(each.prefix, []).append(name)
    if len(names) > 1:
        known = ", ".join(f"{prefix!r} ({', '.join(of)})" for prefix, of in names.items())
        raise UserError(f"--prefix is missing: the training sources have different ones, {known}; choose one of them.")
    return next(iter(names))


def source_text(prefix: str, text: str) -> str | None:
    """Returns what the model reads for a (cleaned) text; None if there is nothing in the text."""
    return prefix + text if text.strip() else None


def output_lines(count: int, outputs: Mapping[int, Sequence[tuple[str, str]]], several: bool) -> Iterator[str]:
    """For the sources 1, 2, ..., `count` a line each, without its end: that of the first output.

    Args:
        outputs: (text, score) of the outputs, best first, by the number of the source; one that is not there
            has the output "" with score 0.
        several: in place of that, a line for each output: number of the source, score and text, with tabs between.
    """
    for number in range(1, count + 1):
        found = outputs.get(number, [("", "0")])
        if several:
            yield from (f"{number}\t{score}\t{in_one_line(text)}" for text, score in found)
        else:
            yield in_one_line(found[0][0])


def in_one_line(text: str) -> str:
    """The same with a space for each end of a line, of any kind that Unicode knows, and for each tab."""
    return " ".join(text.replace("\t", " ").splitlines())


@contextlib.contextmanager
def whole_file(path: str, flag: str) -> Iterator[Callable[[Iterable[str]], None]]:
    """Yields a function that writes lines to a file, atomically; an old file is replaced and a link stays a link.

    Raises UserError, which names the flag, at the start of the block if the file cannot be written.
    """

    def write(lines: Iterable[str]) -> None:
        with writing_flag(flag, path), replacing(target, durable=True) as temporary:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)

    with writing_flag(flag, path):
        target = Path(path).expanduser().resolve()
        if target.exists() and not target.is_file():
            raise UserError(f"--{flag}={path}: is not a file; name one, or leave --{flag} out to print.")
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # raises now what would be raised after all the work
    yield write
