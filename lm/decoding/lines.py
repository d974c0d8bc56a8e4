"""Reads sources from the lines of a text file, and atomically writes outputs as the lines of another file."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from lm.config import Config
from lm.data.reading import format
from lm.errors import UserError
from lm.files import expanded, replacing, writing_flag

# Control characters, and the marks that change the direction in which a terminal displays text.
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def read_lines(path: str, flag: str) -> list[str]:
    """Returns the lines of a UTF-8 file with LF or CRLF endings. On failure, raises a UserError that names the flag."""
    try:
        return list(format.read_lines(expanded(path), rows=True))
    except UserError as error:
        raise UserError(f"--{flag}={error}") from None


def prefix_of(config: Config) -> str:
    """Returns the source prefix used in training. Raises UserError if the data sources have different prefixes."""
    names: dict[str, list[str]] = {}
    for name, each in config.data.train.items():
        if each.weight > 0:
            names.setdefault(each.prefix, []).append(name)
    if len(names) > 1:
        known = ", ".join(f"{prefix!r} ({', '.join(of)})" for prefix, of in names.items())
        raise UserError(f"--prefix is missing: the data sources have different prefixes, {known}; choose one of them.")
    return next(iter(names), "")  # an imported model has no training data


def source_text(prefix: str, text: str) -> str | None:
    """Returns the prefix followed by the text, or None if the text is blank, because its output is then empty."""
    return prefix + text if text.strip() else None


def output_lines(count: int, outputs: Mapping[int, Sequence[tuple[str, str]]], several: bool) -> Iterator[str]:
    """Yields the best output for each source number from 1 to `count`, as one line without a line ending.

    `outputs` maps source numbers to (text, score) pairs, best first; the output of a missing source is "" with score 0.
    If `several` is true, all outputs of each source are yielded as lines "number TAB score TAB text".
    """
    for number in range(1, count + 1):
        found = outputs.get(number, [("", "0")])
        if several:
            yield from (f"{number}\t{score}\t{in_one_line(text)}" for text, score in found)
        else:
            yield in_one_line(found[0][0])


def in_one_line(text: str) -> str:
    """Replaces each tab and each Unicode line break with a space."""
    return " ".join(text.replace("\t", " ").splitlines())


def visible(text: str) -> str:
    """Escapes control characters except tabs and line breaks. For example, the ESC character becomes \\x1b."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def show(text: str) -> None:
    """Prints text immediately, without a line ending. If stdout is a terminal, control characters are escaped."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def refuse_same_file(output: str, read: str | None, flag: str) -> None:
    """Raises UserError if --output and the given flag name the same file, directly or through a link."""
    one, other = expanded(output), expanded(read or "")
    if read and one.exists() and other.exists() and one.samefile(other):
        raise UserError(f"--output={output} would overwrite the file that --{flag} reads; name another file.")


@contextlib.contextmanager
def whole_file(path: str, flag: str) -> Iterator[Callable[[Iterable[str]], None]]:
    """Yields a function that atomically replaces the content of a file with lines, preserving symbolic links.

    If the file cannot be written, a UserError that names the flag is raised before the `with` block is entered.
    """

    def write(lines: Iterable[str]) -> None:
        with writing_flag(flag, path), replacing(target, durable=True) as temporary:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)

    with writing_flag(flag, path):
        target = expanded(path).resolve()
        if target.exists() and not target.is_file():
            raise UserError(f"--{flag}={path} is not a file; name a file, or omit --{flag} to print the output.")
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # raises an error now rather than after decoding
    yield write
