"""Reads raw examples from files. FORMATS lists the supported formats, and `open_reader` opens a data source.

A `Format` finds the files of a data source, hashes them and yields their records. A `Reader` converts the records to
raw examples. `readers.py` has one reader class per kind of raw example.
"""

from __future__ import annotations

import dataclasses

from lm.config import SourceConfig
from lm.data.reading.annotated import Conll, Squad
from lm.data.reading.embedded import Embedded
from lm.data.reading.format import Format, Reader, Refuse
from lm.data.reading.readers import READERS
from lm.data.reading.records import CommaSeparated, JsonLines, Parquet, TabSeparated
from lm.data.reading.text import Text
from lm.data.reading.tfds import Tfds
from lm.data.reading.wording import wording_of
from lm.errors import UserError

# Maps each value of data.*.NAME.kind to its format.
FORMATS: dict[str, type[Format]] = {
    "embedded": Embedded,
    "text": Text,
    "jsonl": JsonLines,
    "tsv": TabSeparated,
    "csv": CommaSeparated,
    "parquet": Parquet,
    "tfds": Tfds,
    "conll": Conll,
    "squad": Squad,
}


def open_reader(config: SourceConfig, reader: type[Reader]) -> Reader:
    """Returns a reader for a data source. Raises UserError if the settings are inconsistent or no data is found."""

    def refuse(setting: str, message: str) -> None:
        raise UserError(f"{wording_of(config).name(setting)}: {message}")

    check_source(config, reader, refuse)
    return reader(config, FORMATS[config.kind](config))


def check_source(config: SourceConfig, reader: type[Reader], refuse: Refuse) -> None:
    """Calls `refuse` if the settings of a data source do not suit the reader. Opens no files."""
    source, kind, wording = FORMATS[config.kind], reader.kind, wording_of(config)
    if source.holds is not None and kind not in source.holds:
        fitting = [name for name, each in FORMATS.items() if each.holds is None or kind in each.holds]
        refuse("kind", f"{config.kind} does not support {kind}; use {' or '.join(fitting)}.")
    needed, message = reader.needs
    if not source.names_fields and not getattr(config, needed):
        refuse(needed, message)
    for setting in (each.name for each in dataclasses.fields(SourceConfig) if each.default == ""):
        if not getattr(config, setting):
            continue
        wanting = [each.kind for each in READERS.values() if setting in each.settings]
        if wanting and setting not in reader.settings:
            only = f"{' or '.join(wanting)}, but this task reads {kind}"
            refuse(setting, f"this setting applies only to {only}; {wording.omit()}.")
        holding = [name for name, each in FORMATS.items() if setting in each.settings]
        if holding and config.kind not in holding:
            only = f"{wording.name('kind')}={' or '.join(holding)}"
            refuse(setting, f"this setting applies only to {only}; {wording.omit()}.")
    source.check(config, kind, refuse)
    if "field" not in reader.roles.values() and config.field != SourceConfig.field:
        refuse("field", f"{kind} have fixed field names ({', '.join(reader.roles)}); {wording.omit('at its default')}.")
