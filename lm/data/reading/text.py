"""Text files: split into documents, labelled by their paths, or with one pair per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import ClassVar, TextIO

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record, as_label
from lm.data.reading.format import FileFormat, Files, Refuse, hash_of, lines_of, open_text, read_lines
from lm.errors import UserError

READ_CHARACTERS = 1 << 20


class Text(FileFormat):
    """Splits files into documents as the setting `document` says, in bounded memory unless a document is a whole file.

    With `label_pattern`, each document gets the label found in its file's path, and empty documents are skipped. With
    `pattern`, each line is a pair; with `target_path`, each line is paired with the same line of another file.
    """

    doc = "text files: documents, texts with labels in their paths, or lines that are pairs"
    endings = (".txt",)
    holds = ("documents", "pairs", "labels", "numbers", "words")
    settings = ("target_path", "pattern", "label_pattern")
    needs: ClassVar = dict.fromkeys(
        ("labels", "numbers"), ("label_pattern", "text files get their labels from their paths; give the pattern.")
    )
    names_fields = True

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        super().check(config, wants, refuse)
        if config.document == "separator" and not config.separator:
            refuse("separator", "is empty although document='separator'.")
        if wants != "pairs":
            return
        if bool(config.target_path) == bool(config.pattern):
            refuse("target_path", "name the file of the targets (or a `pattern`, if one file has both).")
        if config.document != "line":
            refuse("document", "pairs in text files are read line by line: set it to 'line'.")

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self._pair = _compiled(config, "pattern", ("source", "target"), "'(?P<source>.*) => (?P<target>.*)'")
        examples = r"'/(?P<label>neg|pos)/' or '\.(?P<label>neg|pos)$'"
        self._label = _compiled(config, "label_pattern", ("label",), examples)
        self._targets = Files(config.target_path) if config.target_path else None
        if self._targets and len(self.files.found) != len(self._targets.found):
            raise UserError(
                f"{config.path} has {len(self.files.found)} files, but {config.target_path} "
                f"has {len(self._targets.found)}; files are paired in the order of their names."
            )

    def identity(self) -> list[str]:
        config, hashes = self.config, self.files.hashes()
        if self._targets:
            return ["aligned", config.encoding, *hashes, *self._targets.hashes()]
        if self._pair:
            return ["pattern", config.pattern, config.encoding, *hashes]
        documents = [config.document, config.separator, config.encoding, *hashes]
        if not self._label:
            return documents
        found = [as_label(self._label_in(path), config.label_names, "label", str(path)) for path in self.files.found]
        return [hash_of("text", *documents), *found]

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        if not self._targets:
            yield from super().records(fields)
            return
        for source, target in zip(self.files.found, self._targets.found, strict=True):
            yield from self._read_aligned(source, target)

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self._read_pairs(path, self._pair) if self._pair else self._read_documents(path)

    def _read_documents(self, path: Path) -> Iterator[tuple[Record, str]]:
        where, label = str(path), self._label_in(path)

        def whole(file: TextIO) -> Iterator[str]:
            return filter(None, [file.read().replace("\r\n", "\n")])

        split = {"file": whole, "line": lines_of, "paragraph": _paragraphs, "separator": self._separated}
        with open_text(path, self.config.encoding) as file:
            for text in split[self.config.document](file):
                if not self._label or text.strip():
                    yield {"text": text, "label": label}, where

    def _label_in(self, path: Path) -> str:
        if not self._label:
            return ""
        match = self._label.search(path.as_posix())
        if match is None or not match["label"]:
            raise UserError(f"{path}: label_pattern {self._label.pattern!r} finds no label in this path.")
        return match["label"]

    def _read_pairs(self, path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Record, str]]:
        """Yields the named groups of each line. The pattern must match the whole line."""
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
            if not line.strip():
                continue
            where, match = f"{path}, line {number}", pattern.fullmatch(line)
            if match is None or match["source"] is None or match["target"] is None:
                raise UserError(f"{where}: pattern {pattern.pattern!r} does not match {line!r:.60}.")
            yield match.groupdict(), where

    def _read_aligned(self, source: Path, target: Path) -> Iterator[tuple[Record, str]]:
        """Pairs line i of one file with line i of the other."""
        lines = read_lines(source, self.config.encoding), read_lines(target, self.config.encoding)
        number = 0
        for number, (one, other) in enumerate(zip_longest(*lines), start=1):
            if one is None or other is None:
                shorter, longer = number - 1, number + sum(1 for side in lines for _ in side)
                counts = (shorter, longer) if one is None else (longer, shorter)
                raise UserError(
                    f"{source} has {counts[0]:,} lines, but {target} has {counts[1]:,}; line i of one is paired with "
                    "line i of the other, so one of the files is wrong or incomplete."
                )
            yield {"source": one, "target": other}, f"{source}, line {number}"
        if number == 0:
            raise UserError(f"{source} and {target}: both files are empty.")

    def _separated(self, file: TextIO) -> Iterator[str]:
        """Yields the texts between separators, without leading and trailing line breaks."""
        separator, rest = self.config.separator, ""
        while block := file.read(READ_CHARACTERS):
            if block.endswith("\r"):
                block += file.read(1)  # so that no CR LF is split
            *texts, rest = (rest + block.replace("\r\n", "\n")).split(separator)
            yield from (text.strip("\n") for text in texts)
        if rest.strip("\n"):
            yield rest.strip("\n")


def _paragraphs(file: TextIO) -> Iterator[str]:
    for has_text, lines in groupby(lines_of(file), lambda line: bool(line.strip())):
        if has_text:
            yield "\n".join(lines)


def _compiled(config: SourceConfig, setting: str, groups: Iterable[str], examples: str) -> re.Pattern[str] | None:
    """Returns a setting compiled as a regular expression, or None if empty. Raises UserError if a group is missing."""
    pattern = getattr(config, setting)
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{setting} {pattern!r}: not a regular expression ({error}).") from error
    if missing := sorted(set(groups) - set(compiled.groupindex)):
        raise UserError(
            f"{setting} {pattern!r}: it has no group named {' and none named '.join(missing)}; write e.g. {examples}."
        )
    return compiled
