"""Formats for annotated text: CoNLL (tagged words) and SQuAD (questions with answers)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record, as_list, as_name, as_text
from lm.data.reading.format import FileFormat, Refuse, open_text, read_lines
from lm.data.reading.records import parse_json
from lm.data.reading.wording import wording_of
from lm.errors import UserError

NEW_DOCUMENT = "-DOCSTART-"
CONLLU = "ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC".split()
COMMENT = "#"
_NAMED_COLUMNS = re.compile(r"#\s*global\.columns\s*=(.*)")
# The CoNLL-U ID of a word (3), a multiword token (3-4) or an empty node (8.1).
_ID = re.compile(r"([0-9]+)(?:([-.])[0-9]+)?")
# A first line with one name from each of these two sets looks like a header row.
_WORD_NAMES = {"word", "words", "token", "tokens", "form", "text"}
_TAG_NAMES = {"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "pos", "upos", "chunk", "entity"}


class Conll(FileFormat):
    """Reads tagged words, one per line. Columns are separated by tabs or, in lines without tabs, by spaces.

    All lines of a file must have the same number of columns. `field` and `label_field` select the word column and the
    tag column by number (starting at 1) or by name. Column names come from the header row, from `# global.columns`
    (CoNLL-U Plus) or from the CoNLL-U standard. By default, the words are in column 1 (column 2 if column 1 numbers the
    words of each sentence) and the tags in the last column.

    Comments (see `Columns.skipped`) and the multiword tokens and empty nodes of CoNLL-U are skipped.
    """

    doc = "CoNLL or CoNLL-U: one word and its tag per line, and an empty line after each sentence"
    endings = (".conll", ".conllu", ".bio", ".iob", ".iob2")
    holds = ("tags", "words")
    settings = ("label_field",)
    names_fields = True

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        super().check(config, wants, refuse)
        word = _word_column(config) or "1"
        for setting, column in (("field", word), ("label_field", config.label_field)):
            if re.fullmatch("[+-]?[0-9]+", column) and int(column) < 1:
                refuse(setting, f"{column!r} is not a column; give a column number (starting at 1) or a column name.")
        if config.label_field == word:
            advice = "leave this setting empty to use the last column."
            refuse("label_field", f"{word!r} is the word column, not a tag column; {advice}")

    def options(self) -> list[str]:
        # `field` is included only if it is set, so that runs that predate this setting can still be resumed.
        word = _word_column(self.config)
        return super().options() + ([f"field={word}"] if word else [])

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """For each sentence, yields a record with its words and tags, and the position of its first word."""
        tagged = "tags" in [each.spec for each in fields]  # new inputs may be untagged
        lines = list(read_lines(path, self.config, rows=True))
        rows = list(map(_columns, lines))
        columns = Columns(path, lines, rows, self.config, tagged)
        if columns.numbered and not _word_column(self.config):
            tag = f" and tags are read from column {columns.tag + 1}" if tagged else ""
            self.remarks.add(f"column 1 numbers the words, so words are read from column 2{tag}")
        words: list[str] = []
        tags: list[str] = []
        begin = ""
        for index, values in enumerate(chain(rows, [[]])):
            where = f"{path}, line {index + 1}"
            if not values or NEW_DOCUMENT in (values[0], values[min(columns.word, len(values) - 1)]):
                if words:
                    yield {"words": words, "tags": tags}, begin
                words, tags = [], []
            elif skipped := columns.skipped(values, not words):
                self.counts[f"{skipped} are skipped"] += 1
            elif index != columns.header:
                if columns.header >= 0 and values == rows[columns.header]:
                    raise UserError(f"{where}: this line repeats the column names; remove it.")
                columns.check(values, lines[index], where)
                begin = begin if words else where
                words.append(values[columns.word])
                tags.append(values[columns.tag] if tagged else "")


class Columns:
    """The columns of a CoNLL file, inferred from all of its lines. If `tagged` is false, only words are required.

    Raises UserError if a requested column does not exist, or if it is unclear which column holds the words or the tags.

    Attributes:
        word, tag: the indices of the word column and the tag column.
        numbered: whether the first column numbers the words of each sentence.
        header: the index of the header row, or -1 if there is none.
    """

    def __init__(self, path: Path, lines: Sequence[str], rows: Sequence[list[str]], config: SourceConfig, tagged: bool):
        self._path, self._tagged, self._wording = path, tagged, wording_of(config)
        settings = {"field": _word_column(config), "label_field": config.label_field if tagged else ""}
        wanted = {name.casefold() for name in settings.values() if name and not name.isdecimal()}
        names, self.header = _names(lines, rows, wanted)
        plain = [row for index, row in enumerate(rows) if index != self.header and _may_be_word(row)]
        ids = [_ID.fullmatch(row[0]) for row in plain]
        self._has_ids = all(ids) and any(each and not each[2] for each in ids)
        self.numbered = self._has_ids and _counts_up(rows, self.header)
        self._width = len(plain[0]) if plain else 0
        names = CONLLU if self.numbered and not names else names
        if self.header >= 0 and SourceConfig.field in names:
            settings["field"] = settings["field"] or SourceConfig.field
        found = {setting: self._index(setting, name, names) for setting, name in settings.items() if name}
        self.word, self.tag = found.get("field", int(self.numbered)), found.get("label_field", self._width - 1)
        self._tags = {row[self.tag] for row in plain if len(row) > self.tag}
        self._check_choice(plain, settings)

    def _index(self, setting: str, name: str, names: Sequence[str]) -> int:
        if name.isdecimal():
            return int(name) - 1
        folded = [each.casefold() for each in names]
        if (number := folded.count(name.casefold())) == 1:
            return folded.index(name.casefold())
        known = f"the columns are called {', '.join(names)}" if names else "the file does not name its columns"
        problem = "several columns are" if number else "no column is"
        raise UserError(
            f"{self._path}: {self._wording.name(setting)}: {problem} called {name!r}; {known}. "
            "Give a column number (starting at 1)."
        )

    def _check_choice(self, plain: Sequence[list[str]], settings: Mapping[str, str]) -> None:
        if not plain or self._width < 2:
            return  # if tags are required, `check` raises UserError at the first line
        if self._tagged and self.word == self.tag:
            raise UserError(f"{self._path}: column {self.word + 1} cannot hold both the word and the tag; set `field`.")
        if self._tagged and not settings["label_field"] and self.numbered and self._width == len(CONLLU):
            raise UserError(
                f"{self._path}: this is CoNLL-U, whose last column holds no tags; set label_field, e.g. to 'UPOS' "
                f"(the columns are {', '.join(CONLLU)})."
            )
        if not settings["field"] and self._has_ids and not self.numbered:
            field = self._wording.name("field", "`")
            raise UserError(f"{self._path}: column 1 holds only numbers; set {field} to the word column.")
        first = plain[0]
        if self.header >= 0 or len(first) <= max(self.word, self.tag):
            return
        word, tag = first[self.word], first[self.tag]
        if word.casefold() in _WORD_NAMES and tag.casefold() in _TAG_NAMES:
            named = self._wording.assign("field", word) + (f" and label_field={tag!r}" if self._tagged else "")
            raise UserError(
                f"{self._path}: the first line seems to name the columns ({', '.join(first)}); set {named}, or remove "
                "this line."
            )

    def skipped(self, values: Sequence[str], begins: bool) -> str:
        """Returns a description of a line that holds no word, or "" if the line holds a word.

        In CoNLL-U, every word has an ID, so a line that begins with # is always a comment. In other files, a line that
        begins with # may hold a word, e.g. a hashtag. Such a line is a comment only if it precedes the first word of a
        sentence and also has an unusual number of columns, has the form "# name = value", or has a tag that is not
        used elsewhere. `begins` is true before the first word of a sentence.
        """
        if values[0].startswith(COMMENT):
            is_odd = ("=" in values[1:3] and self._width > 2) or len(values) != self._width
            must_be_comment = self._has_ids or not self._tags
            if must_be_comment or (begins and (is_odd or (self._tagged and values[self.tag] not in self._tags))):
                return "comment lines"
            return ""
        match = _ID.fullmatch(values[0]) if self._has_ids and self.word > 0 else None
        return "multiword tokens and empty nodes" if match and match[2] else ""

    def check(self, values: Sequence[str], line: str, where: str) -> None:
        """Raises UserError if a line lacks a word or its tag, or if it has the wrong number of columns."""
        count = len(values)
        if count < 1 + self._tagged or not values[self.word if self.word < count else 0]:
            wanted = "a word and its tag" if self._tagged else "a word"
            raise UserError(f"{where}: {line!r:.60} does not hold {wanted} (columns are separated by tabs or spaces).")
        if count != self._width:
            raise UserError(
                f"{where}: this line has {count} columns, but earlier lines have {self._width}: {line!r:.60}."
            )
        for setting, column in (("field", self.word), ("label_field", self.tag))[: 1 + self._tagged]:
            if column >= count:
                name = self._wording.name(setting)
                raise UserError(f"{where}: {name} is {column + 1}, but there are only {count} columns.")


def _word_column(config: SourceConfig) -> str:
    """Returns the number or name of the word column, or "" if `field` has its default value."""
    return config.field if config.field != SourceConfig.field else ""


def _may_be_word(row: Sequence[str]) -> bool:
    return bool(row) and row[0] != NEW_DOCUMENT and not row[0].startswith(COMMENT)


def _names(lines: Sequence[str], rows: Sequence[list[str]], wanted: set[str]) -> tuple[list[str], int]:
    """Returns the column names ([] if unknown) and the index of the header row (-1 if there is none)."""
    for line in lines:
        if found := _NAMED_COLUMNS.match(line):
            return found[1].split(), -1
    first = next((index for index, row in enumerate(rows) if row), -1)
    if wanted and first >= 0 and wanted <= {name.casefold() for name in rows[first]}:
        return rows[first], first
    return [], -1


def _counts_up(rows: Sequence[list[str]], header: int) -> bool:
    """Returns whether the first column numbers the words of each sentence, starting at 0 or 1.

    If no sentence has two or more words, returns False.
    """
    last, most = -1, 0
    for index, row in enumerate(rows):
        if not row or row[0] == NEW_DOCUMENT:
            last = -1
        elif index != header and _may_be_word(row) and row[0].isdecimal():
            if int(row[0]) not in ((0, 1) if last < 0 else (last + 1,)):
                return False
            most, last = max(most, last + 1), int(row[0])
    return most > 0


def _columns(line: str) -> list[str]:
    """Splits a line at tabs or spaces, and drops trailing empty columns. Other whitespace is part of the words."""
    if not line.strip():
        return []
    if "\t" in line:
        return [value.strip(" ") for value in line.rstrip("\t ").split("\t")]
    return [value for value in line.split(" ") if value]


class Squad(FileFormat):
    """Reads SQuAD's JSON files, which are nested as follows: `data` > `paragraphs` > `qas` > `answers`.

    Texts are left unchanged, because the answers contain character offsets into them.
    """

    doc = "SQuAD's JSON"
    endings = (".json",)
    holds = ("questions",)
    settings = ()
    names_fields = True

    def notes(self) -> list[str]:
        return []

    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        with open_text(path, self.config) as file:
            content = parse_json(file.read(), str(path))
        for number, article in enumerate(as_list(_get(content, "data"), "data", str(path)), start=1):
            where = f"{path}, article {number}"
            title = _text(article, "title", where, default="")
            for paragraph in as_list(_get(article, "paragraphs"), "paragraphs", where):
                context = _text(paragraph, "context", where)
                for entry in as_list(_get(paragraph, "qas"), "qas", where):
                    identity = _text(entry, "id", where)
                    here = f"{path}, question {identity!r}"
                    texts = {"id": identity, "title": title, "question": _text(entry, "question", here)}
                    given = {name: entry.get(name) for name in ("answers", "is_impossible")}
                    yield {**texts, "context": context, **given}, here


def _get(record: Any, name: str, default: Any = None) -> Any:
    return record.get(name, default) if isinstance(record, Mapping) else None


def _text(record: Any, name: str, where: str, default: str | None = None) -> str:
    value = _get(record, name, default)
    if value is None:
        raise UserError(f"{where}: this is not SQuAD's JSON format, because {name!r} is missing.")
    return as_name(value, name, where) if name in ("id", "title") else as_text(value, name, where)
