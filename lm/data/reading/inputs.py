"""Readers and data sources for new inputs, which have no labels.

The readers correspond to those in `readers.py`. Labels in the records are never read, so they cannot influence the
predictions; tasks use placeholders instead (`LabelledTask.unlabelled`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lm.config import SourceConfig
from lm.data.reading import FORMATS, open_reader
from lm.data.reading.fields import Field, Record, as_list, as_text
from lm.data.reading.format import Format, Reader
from lm.data.reading.readers import READERS, Labelled, QuestionReader, Tagged
from lm.data.reading.wording import InputSource
from lm.errors import UserError

FORMAT_NAMES = [name for name, each in FORMATS.items() if each.endings]
OF_TARGETS = {setting for each in READERS.values() for setting in each.settings}  # settings that only some tasks use


class TextInput(Reader):
    """Reads texts or pairs of texts."""

    kind = "documents"
    settings = ("pair_field",)
    roles: ClassVar = {"text": "field", "pair": "pair_field"}

    def example(self, record: Record, where: str) -> Labelled:
        pair = self.fields["pair"].text(record, where) if "pair" in self.fields else None
        return Labelled(self.fields["text"].text(record, where), pair, "")


class WordInput(Reader):
    """Reads sentences, given as lists of words or as texts whose words are separated by whitespace."""

    kind = "words"
    roles: ClassVar = {"words": "field"}

    def example(self, record: Record, where: str) -> Tagged:
        field = self.fields["words"]
        is_line = self.source.names_fields and field.spec not in record  # the record is a line of a text file
        value = record["text"] if is_line else field.value(record, where)
        words = value.split() if isinstance(value, str) else as_list(value, field.spec, where)
        return Tagged(tuple(as_text(word, field.spec, where) for word in words), ())


class QuestionInput(QuestionReader):
    """Reads questions and their contexts; ids and titles may be absent."""

    roles: ClassVar = dict.fromkeys(("id", "title", "question", "context"), "")
    optional = ("id", "title")


class Given(Format):
    """A placeholder for text from the command line. It yields no records; `given_text` passes one to the reader."""

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return iter(())

    def identity(self) -> list[str]:
        return []


def given_text(config: SourceConfig, reader: type[Reader], text: str) -> Any:
    """Returns the raw example for `text`. If the reader needs several fields, `text` must be a JSON object.

    Raises UserError if `text` should be a JSON object but is not, or if a field is missing.
    """
    reading = reader(config, Given(config))
    names = list(dict.fromkeys(n for each in reading.fields.values() if not each.optional for n in each.names))
    try:
        record = {names[0]: text} if len(names) == 1 else json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not record or not isinstance(record, Mapping):
        sample = json.dumps(dict.fromkeys(names, "..."))
        raise UserError(
            f"--text: this model reads the fields {' and '.join(names)}; give a JSON object: --text='{sample}'."
        )
    return reading.example(record, "--text")


def format_of(path: str) -> str:
    """Infers the format from a file name's extension. Raises UserError if the extension is unknown."""
    name = path.lower().removesuffix(".gz")
    for kind in FORMAT_NAMES:
        if name.endswith(tuple(FORMATS[kind].endings)):
            return kind
    raise UserError(
        f"--input={path}: the file name has none of the extensions {_endings(FORMAT_NAMES)}; set --format to "
        f"one of {', '.join(FORMAT_NAMES)}."
    )


def _endings(formats: Sequence[str]) -> str:
    return " ".join(ending for kind in formats for ending in FORMATS[kind].endings)


def input_source(
    train: Mapping[str, SourceConfig], reader: type[Reader], kind: str, path: str, given: Mapping[str, Any]
) -> SourceConfig:
    """Returns a data source for new inputs. In a text file, each line is a document.

    Settings such as field names are copied from the training data unless they are `given`. Raises UserError if a copied
    setting differs between the training data sources, or if the format cannot represent the pairs that the model reads.
    """
    sources = [source for source in train.values() if source.weight > 0]
    as_in_training = {*FORMATS[kind].settings} - OF_TARGETS
    if not FORMATS[kind].names_fields or all(each.kind == kind for each in sources):
        as_in_training |= {*reader.settings, *reader.roles.values()} - {""}
    elif "pair_field" in reader.settings and "pair_field" not in given and any(each.pair_field for each in sources):
        fitting = ", ".join(name for name in FORMAT_NAMES if not FORMATS[name].names_fields)
        problem = f"this model reads pairs of texts, but the format {kind} holds single texts"
        raise UserError(f"--input={path}: {problem}; use one of {fitting}.")
    values: dict[str, Any] = {"document": "line"}
    for setting in sorted(as_in_training - given.keys()):
        # An imported model has no training data, so the settings have their defaults.
        values[setting], *others = dict.fromkeys(getattr(each, setting) for each in sources or [SourceConfig()])
        if others:
            found = ", ".join(map(repr, (values[setting], *others)))
            problem = f"its value differs between the training data sources ({found})"
            raise UserError(f"--{setting} is required: {problem}; choose one.")
    return InputSource(kind=kind, path=path, **{**values, **given})


def open_inputs(config: SourceConfig, reader: type[Reader], inferred_from: str = "") -> Reader:
    """Returns a reader for new inputs. Raises a UserError that names the flag if a setting does not suit the format.

    `inferred_from` is the path whose extension implies the format; it is "" if the format was given.
    """
    fitting = [name for name in FORMAT_NAMES if reader.kind in (FORMATS[name].holds or [reader.kind])]
    names = ", ".join(fitting)
    if config.kind not in fitting and inferred_from:
        raise UserError(
            f"--input={inferred_from}: the file extension implies the format {config.kind}, which does not support "
            f"{reader.kind}; use a file with the extension {_endings(fitting)}, or set --format to one of {names}."
        )
    if config.kind not in fitting:
        raise UserError(f"--format: {config.kind} does not support {reader.kind}; use one of {names}.")
    return open_reader(config, reader)
