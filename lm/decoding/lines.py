"""Lines of text: reads sources from a file and writes outputs to a file atomically."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lm.config import Config
from lm.data.reading import opening
from lm.errors import UserError
from lm.files import replacing, writing_flag


def read_lines(path: str, flag: str) -> list[str]:
    """Returns the lines of a UTF-8 file with LF or CRLF line endings. Raises UserError, naming the flag, on failure."""
    try:
        return list(opening.read_lines(Path(path).expanduser(), "utf-8", remedy=opening.CONVERT))
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
        raise UserError(f"--prefix is missing: the training data has different prefixes, {known}; choose one of them.")
    return next(iter(names))


def source_text(prefix: str, text: str) -> str | None:
    """Returns the prefix followed by a cleaned text; None if the text is blank."""
    return prefix + text if text.strip() else None


def output_lines(count: int, outputs: Mapping[int, Sequence[tuple[str, str]]], several: bool) -> Iterator[str]:
    """Yields, for each of the sources 1, 2, ..., `count`, one line without a line ending: its best output.

    Args:
        outputs: maps source numbers to (text, score) pairs, best first; a missing source has the output "" with
            score 0.
        several: yield one line per output instead: source number, score and text, separated by tabs.
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


@contextlib.contextmanager
def whole_file(path: str, flag: str) -> Iterator[Callable[[Iterable[str]], None]]:
    """Yields a function that writes lines to a file atomically. It replaces an existing file but keeps symbolic links.

    Raises UserError, naming the flag, before entering the block if the file cannot be written.
    """

    def write(lines: Iterable[str]) -> None:
        with writing_flag(flag, path), replacing(target, durable=True) as temporary:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)

    with writing_flag(flag, path):
        target = Path(path).expanduser().resolve()
        if target.exists() and not target.is_file():
            raise UserError(f"--{flag}={path}: is not a file; name one, or omit --{flag} to print.")
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # fails now rather than after decoding
    yield write
