"""The protocol of data formats: how a data source is found, hashed and read as records."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from lm.config import SourceConfig
from lm.data.reading.fields import Field, ReadyField, Record
from lm.data.reading.files import Files, encoding_notes

Refuse = Callable[[str, str], None]  # (setting, message): raises UserError


class Format(abc.ABC):
    """A data source of one format. The class describes the format; its defaults fit records with named fields."""

    doc: ClassVar[str]  # a line for `--help`
    holds: ClassVar[Collection[str] | None] = None  # kinds of raw example; None for any, from records with named fields
    # The settings of a source that it reads, out of those that are empty by default.
    settings: ClassVar[Collection[str]] = ("target_field", "pair_field", "label_field")
    # Replaces `Reader.needs`: kind of raw example -> the setting that must be given, and the message if it is not.
    needs: ClassVar[dict[str, tuple[str, str]]] = {}
    # Whether the format itself names the fields of its records, after the roles of READERS ("text", "label", ...), and
    # yields values that need no check. Otherwise settings name the fields.
    names_fields: ClassVar[bool] = False

    def __init__(self, config: SourceConfig):
        """Finds the data. Raises UserError if there is none, or if a setting cannot be understood."""
        self.config = config

    @classmethod
    def check(cls, config: SourceConfig, wants: str, refuse: Refuse) -> None:
        """Refuses settings from which no raw examples of the kind `wants` can be read."""
        if not config.path:
            refuse("path", "is empty; name a file, a glob or a TFDS data set (after a colon: --config=FILE.py:PATH).")

    def field(self, role: str, setting: str = "", *, optional: bool = False) -> Field:
        """Returns the field with this role: the one that `setting` names, or the one called `role` without any."""
        if self.names_fields:
            return ReadyField(role)
        return Field(getattr(self.config, setting), setting) if setting else Field(role, optional=optional)

    @abc.abstractmethod
    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields every record with its position, for messages; columns that no field needs may be left out.

        Raises UserError at the first record that cannot be read, and if there is none.
        """

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Returns what decides the records and what `field` takes from them, wherever the files are."""

    def notes(self) -> list[str]:
        """Returns what a person should know about the files."""
        return []


class FileFormat(Format):
    """A format of one or more files, each read by `read`."""

    notes_encoding: ClassVar[bool] = True  # whether `notes` counts the lines that depend on the encoding

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self.files = Files(config.path)

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self.files.read_each(lambda path: self.read(path, fields))

    @abc.abstractmethod
    def read(self, path: Path, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        """Yields the records of one file."""

    def options(self) -> list[str]:
        """Returns the settings that decide the records."""
        return [self.config.encoding] if self.names_fields else [self.config.field, self.config.encoding]

    def identity(self) -> list[str]:
        return [*self.options(), *self.files.hashes()]

    def notes(self) -> list[str]:
        return encoding_notes(self.files.found, self.config.encoding) if self.notes_encoding else []
