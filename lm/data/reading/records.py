"""Records one after the other: lines of JSON, rows of TSV and Parquet, examples of TFDS.

A reader is told which fields will be asked for, so that it reads no other columns and names what is
missing at once. It gives each record with its place, for messages.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record
from lm.data.reading.files import Files, read_lines
from lm.data.reading.tfds import TfdsDataSet
from lm.errors import UserError


class Records(abc.ABC):
    """Records in a fixed order."""

    def __init__(self, config: SourceConfig, fields: Sequence[Field]):
        self.config = config
        self.fields = fields
        if config.columns and config.kind != "tsv":
            raise UserError(f"columns={config.columns!r}: only kind='tsv' takes names of columns.")

    @abc.abstractmethod
    def iterate(self) -> Iterator[tuple[Record, str]]:
        """All records and where each is. Raises UserError at the first one that cannot be read, or if there is none."""

    @abc.abstractmethod
    def describe(self) -> str:
        """A few words for tables and messages."""

    @abc.abstractmethod
    def identity(self) -> list[str]:
        """Everything that decides the records and what `field` takes from them."""


def open_records(config: SourceConfig, fields: Sequence[Field]) -> Records:
    """Raises UserError if there is nothing to read at `config.path`."""
    kinds: dict[str, type[Records]] = {
        "jsonl": JsonLines,
        "tsv": TabSeparated,
        "parquet": Parquet,
        "tfds": Tfds,
    }
    return kinds[config.kind](config, fields)


class FileRecords(Records):
    """Of one or more files. Each kind says how to read one."""

    def __init__(self, config: SourceConfig, fields: Sequence[Field]):
        super().__init__(config, fields)
        self.files = Files(config.path)

    def iterate(self) -> Iterator[tuple[Record, str]]:
        yield from self.files.read_each(self.read)

    @abc.abstractmethod
    def read(self, path: Path) -> Iterator[tuple[Record, str]]:
        """The records of one file."""

    def describe(self) -> str:
        return self.files.describe()

    def options(self) -> list[str]:
        return [self.config.field, self.config.encoding]

    def identity(self) -> list[str]:
        return self.options() + self.files.hashes()

    def columns(self, present: Sequence[str], where: str) -> list[str]:
        """Those that any field needs."""
        return list(dict.fromkeys(name for field in self.fields for name in field.columns(present, where)))


class JsonLines(FileRecords):
    def read(self, path: Path) -> Iterator[tuple[Record, str]]:
        for number, line in enumerate(read_lines(path, self.config.encoding), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON ({error}).") from error
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected a JSON object, got {type(record).__name__}.")
            yield record, where


class TabSeparated(FileRecords):
    """No quoting. The first line names the fields, unless `columns` does. Further fields have no name."""

    def options(self) -> list[str]:
        # Only if it is set, so that stores made before there was this setting are still found.
        return super().options() + ([f"columns={self.config.columns}"] if self.config.columns else [])

    def read(self, path: Path) -> Iterator[tuple[Record, str]]:
        lines = enumerate(read_lines(path, self.config.encoding), start=1)
        if self.config.columns:
            names, source = [name.strip() for name in self.config.columns.split(",")], "`columns`"
        else:
            names, source = next(lines, (0, ""))[1].split("\t"), "the first line"
        try:
            needed = [names.index(name) for name in self.columns(names, str(path))]
        except UserError as error:
            hint = "" if self.config.columns else "; `columns` names them where that line does not"
            raise UserError(f"{error} (They are read from {source}{hint}.)") from error
        for number, line in lines:
            values = line.split("\t")
            where = f"{path}, line {number}"
            if line and max(needed) >= len(values):
                raise UserError(f"{where}: has {len(values)} fields, {source} {len(names)}.")
            if line:
                yield dict(zip(names, values, strict=False)), where


class Parquet(FileRecords):
    def options(self) -> list[str]:
        return [self.config.field]

    def read(self, path: Path) -> Iterator[tuple[Record, str]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                columns = self.columns(file.schema_arrow.names, str(path))
                row = 0
                for batch in file.iter_batches(batch_size=1024, columns=columns):
                    for record in batch.to_pylist():
                        row += 1
                        yield record, f"{path}, row {row}"
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error


class Tfds(Records):
    def __init__(self, config: SourceConfig, fields: Sequence[Field]):
        super().__init__(config, fields)
        self._data_set = TfdsDataSet(config.path, config.data_dir)

    def iterate(self) -> Iterator[tuple[Record, str]]:
        where = f"tfds {self.config.path}, split {self.config.split!r}"
        data = self._data_set.open_split(self.config.split)
        if not len(data):
            raise UserError(f"{where}: there is no document in it.")
        for i in range(len(data)):
            yield data[i], f"{where}, example {i}"

    def describe(self) -> str:
        return f"tfds {self._data_set.full_name}, split {self.config.split}"

    def identity(self) -> list[str]:
        return [self._data_set.full_name, self.config.split, self.config.field]
