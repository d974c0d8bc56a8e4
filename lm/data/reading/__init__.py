"""From files to raw examples: FORMATS says what can be read, `open_reader` reads it.

A format (`format.py`, one file per format) finds the files of a data source, hashes them and yields records. A reader
(`readers.py`, one class per kind of raw example) picks fields of the records and makes raw examples (`raw.py`).
"""

from __future__ import annotations

import dataclasses

from lm.config import SourceConfig
from lm.data.reading.conll import Conll
from lm.data.reading.csv import CommaSeparated
from lm.data.reading.embedded import Embedded
from lm.data.reading.format import Format, Refuse
from lm.data.reading.jsonl import JsonLines
from lm.data.reading.parquet import Parquet
from lm.data.reading.readers import READERS, Reader
from lm.data.reading.squad import Squad
from lm.data.reading.text import Text
from lm.data.reading.tfds import Tfds
from lm.data.reading.tsv import TabSeparated
from lm.errors import UserError

# The values of data.*.NAME.kind.
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


def open_reader(config: SourceConfig, wants: str) -> Reader:
    """Returns the reader of a data source.

    Args:
        wants: the kind of raw example, a key of READERS.

    Raises UserError if there is nothing to read, or if the settings do not fit.
    """

    def refuse(setting: str, message: str) -> None:
        raise UserError(f"{setting}: {message}")

    check_source(config, wants, refuse)
    return READERS[wants](config, FORMATS[config.kind](config))


def check_source(config: SourceConfig, wants: str, refuse: Refuse) -> None:
    """Refuses a data source from which no raw examples of the kind `wants` can be read; no file is opened."""
    source, reader = FORMATS[config.kind], READERS[wants]
    if wants not in source.holds:
        fitting = [name for name, each in FORMATS.items() if wants in each.holds]
        refuse("kind", f"{config.kind} holds no {wants}; use {' or '.join(fitting)}.")
    needed, message = source.needs.get(wants, ("kind", ""))
    if not getattr(config, needed):
        refuse(needed, message)
    given = [
        each.name for each in dataclasses.fields(SourceConfig) if each.default == "" and getattr(config, each.name)
    ]
    for setting in given:
        wanting = [name for name, each in READERS.items() if setting in each.settings]
        if wanting and wants not in wanting:
            refuse(setting, f"is for {' or '.join(wanting)}, and this task reads {wants}; leave it empty.")
        holding = [name for name, each in FORMATS.items() if setting in each.settings]
        if holding and config.kind not in holding:
            refuse(setting, f"is for kind={' or '.join(holding)}; leave it empty.")
    source.check(config, wants, refuse)
    if "field" not in reader.roles.values() and config.field != SourceConfig.field:
        refuse("field", f"{wants} have fields of fixed names ({', '.join(reader.roles)}); leave it as it is.")
