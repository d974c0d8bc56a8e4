"""Reads text files, which contain documents, labelled texts or pairs of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import ClassVar

from lm.config import SourceConfig
from lm.data.reading import finding
from lm.data.reading.fields import Field, Record, as_label
from lm.data.reading.format import FileFormat, Files, Refuse, TextFile, open_text, read_lines, with_line_feeds
from lm.errors import UserError
from lm.files import hash_of


class Text(FileFormat):
    """Splits files into documents as specified by the setting `document`.

    Memory use is bounded unless each file is one document. If `label_pattern` is set, each document gets the label
    found in the path of its file, and empty documents are skipped. If `pattern` is set, each line is a pair or a
    labelled text. If `target_path` is set, line i of the file is paired with line i of the file at `target_path`.
    """

    doc = "text files with documents, labelled texts (labels in paths or lines) or pairs (one per line)"
    endings = (".txt",)
    holds = ("documents", "pairs", "labels", "numbers", "words")
    settings = ("target_path", "pattern", "label_pattern")
    reads = ("encoding", "longest_line", "document", "separator")
    names_fields = True
    # Maps a kind of raw example to the groups that `pattern` must contain, and to an example of `pattern`.
    groups: ClassVar = {"pairs": (("source", "target"), "'(?P<source>.*) => (?P<target>.*)'")} | dict.fromkeys(
        ("labels", "numbers"), (("label", "text"), "'(?P<label>[^ ]+) (?P<text>.*)'")
    )

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        super().check(config, wants, refuse)
        if config.document == "separator" and not config.separator:
            refuse("separator", "this setting must not be empty if document='separator'.")
        if wants == "pairs" and bool(config.target_path) == bool(config.pattern):
            message = "name the file with the targets (or, if one file holds sources and targets, set only `pattern`)."
            refuse("target_path", message)
        if wants in ("labels", "numbers") and bool(config.label_pattern) == bool(config.pattern):
            message = (
                "give a pattern that finds the label in a file's path (or, if lines hold labels, set only `pattern`)."
            )
            refuse("label_pattern", message)
        if (wants == "pairs" or config.pattern) and config.document != "line":
            refuse("document", f"{wants} in text files are read line by line, so this setting must be 'line'.")
        if config.pattern and wants in cls.groups:
            _check_pattern(config, "pattern", *cls.groups[wants], refuse)
        if config.label_pattern:
            examples = r"'/(?P<label>neg|pos)/' or '\.(?P<label>neg|pos)$'"
            _check_pattern(config, "label_pattern", ("label",), examples, refuse)
            if "(?P<text>" in config.label_pattern:
                message = "this pattern is matched against paths, which contain no text; to match lines, use `pattern`."
                refuse("label_pattern", message)

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._line = re.compile(config.pattern) if config.pattern else None
        self._label = re.compile(config.label_pattern) if config.label_pattern else None
        self._targets = Files(config.target_path) if config.target_path else None
        if self._targets and (sources := len(self.files.found)) != (targets := len(self._targets.found)):
            raise UserError(
                f"{config.path} has {sources} files, but {config.target_path} has {targets}; files are paired in "
                "order of file name."
            )

    def identity(self) -> list[str]:
        config, hashes = self.config, finding.hashes_of(self.files.found)
        if self._targets:
            return ["aligned", config.encoding, *hashes, *finding.hashes_of(self._targets.found)]
        if self._line:
            return ["pattern", config.pattern, config.encoding, *hashes]
        documents = [config.document, config.separator, config.encoding, *hashes]
        if not self._label:
            return documents
        found = [as_label(self._label_in(path), config.label_names, "label", str(path)) for path in self.files.found]
        return [hash_of("text", *documents), *found]

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        if self._targets:
            return self._read_aligned(path, self._targets.found[self.files.found.index(path)])
        return self._read_matches(path, self._line) if self._line else self._read_documents(path)

    def _read_documents(self, path: Path) -> Iterator[tuple[Record, str]]:
        label = self._label_in(path)
        split: dict[str, Callable[[TextFile], Iterable[str]]] = {
            "file": lambda file: filter(None, [with_line_feeds(file.read())]),
            "line": lambda file: file.lines(rows=True),
            "paragraph": _paragraphs,
            "separator": self._separated,
        }
        with open_text(path, self.config) as file:
            where = str(path)
            for text in split[self.config.document](file):
                if not self._label or text.strip():
                    yield {"text": text, "label": label}, where
            if self.config.document != "line":
                lone = "carriage returns (CR) without a line feed are kept in the documents"
                self.counts[lone] += file.lone_returns

    def _label_in(self, path: Path) -> str:
        if not self._label:
            return ""
        match = self._label.search(path.as_posix())
        if match is None or not match["label"]:
            raise UserError(f"{path}: label_pattern {self._label.pattern!r} finds no label in this path.")
        return match["label"]

    def _read_matches(self, path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Record, str]]:
        """Yields the named groups of each line. The pattern must match the whole line."""
        needed = [name for groups, _ in self.groups.values() for name in groups if name in pattern.groupindex]
        for number, line in enumerate(read_lines(path, self.config, rows=True), start=1):
            if not line.strip():
                continue
            where, match = f"{path}, line {number}", pattern.fullmatch(line)
            if match is None or any(match[name] is None for name in needed):
                raise UserError(f"{where}: pattern {pattern.pattern!r} does not match {line!r:.60}.")
            yield match.groupdict(), where

    def _read_aligned(self, source: Path, target: Path) -> Iterator[tuple[Record, str]]:
        """Pairs line i of one file with line i of the other."""
        lines = read_lines(source, self.config, rows=True), read_lines(target, self.config, rows=True)
        number = 0
        for number, (one, other) in enumerate(zip_longest(*lines), start=1):
            if one is None or other is None:
                more = sum(1 for side in lines for _ in side)  # only the longer file has lines left
                counts = [number - 1 if line is None else number + more for line in (one, other)]
                raise UserError(
                    f"{source} has {counts[0]:,} lines, but {target} has {counts[1]:,}; line i of one is paired with "
                    "line i of the other, so one of the files is wrong or incomplete."
                )
            yield {"source": one, "target": other}, f"{source}, line {number}"
        if not number:
            raise UserError(f"{source} and {target} are both empty.")

    def _separated(self, file: TextFile) -> Iterator[str]:
        """Yields the texts between separators, without leading and trailing line breaks."""
        separator = self.config.separator
        parts: list[str] = []  # the current document so far, except `rest`, which may be the beginning of a separator
        size, rest = 0, ""
        for block in file.blocks():
            *texts, rest = (rest + with_line_feeds(block)).split(separator)
            for text in texts:
                yield "".join([*parts, text]).strip("\n")
                parts, size = [], 0
            cut = max(0, len(rest) - len(separator) + 1)
            parts.append(rest[:cut])
            size, rest = file.check_length(size + cut), rest[cut:]
        if last := "".join([*parts, rest]).strip("\n"):
            yield last


def _paragraphs(file: TextFile) -> Iterator[str]:
    for is_empty, lines in groupby(file.lines(), key=lambda line: not line.strip()):
        if not is_empty:
            yield file.document(lines, "\n")


def _check_pattern(config: SourceConfig, setting: str, groups: Iterable[str], examples: str, refuse: Refuse) -> None:
    """Calls `refuse` if the pattern is not a regular expression or lacks one of the named groups."""
    pattern = getattr(config, setting)
    try:
        if missing := sorted(set(groups) - set(re.compile(pattern).groupindex)):
            names = " and none named ".join(missing)
            refuse(setting, f"{pattern!r} has no group named {names}; use a pattern such as {examples}.")
    except re.error as error:
        refuse(setting, f"{pattern!r} is not a regular expression ({error}).")
