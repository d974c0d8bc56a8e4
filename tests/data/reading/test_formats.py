"""The declarations of every format, and the cost of importing them."""

import dataclasses
import subprocess
import sys

import pytest

from lm.config import Config, SourceConfig
from lm.config.schema import describe_settings
from lm.data.reading import FORMATS, check_source, open_reader
from lm.data.reading.inputs import WordInput
from lm.data.reading.readers import READERS
from lm.errors import UserError

EMPTY = {each.name for each in dataclasses.fields(SourceConfig) if each.default == ""}


@pytest.mark.parametrize("name", FORMATS)
def test_declarations_name_readers_and_settings_that_exist(name):
    (doc,) = (doc for setting, _, doc in describe_settings(Config) if setting == "data.train.NAME.kind")
    source = FORMATS[name]
    assert f"{name}: {source.doc}" in doc
    assert source.holds is None or (source.holds and set(source.holds) <= {*READERS, WordInput.kind})
    assert set(source.settings) <= EMPTY


@pytest.mark.parametrize(
    ("wants", "kind", "options", "message"),
    [
        (
            "documents",
            "jsonl",
            {"label_field": "x"},
            "label_field: this setting applies only to labels or numbers or tags, but this task",
        ),
        ("pairs", "jsonl", {}, "target_field: name the field that holds the target"),
        (
            "pairs",
            "jsonl",
            {"target_field": "x", "pattern": "y"},
            "pattern: this setting applies only to kind=text; leave it empty",
        ),
        (
            "labels",
            "parquet",
            {"label_field": "x", "columns": "y"},
            "columns: this setting applies only to kind=tsv or csv; leave it empty",
        ),
        ("documents", "text", {"data_dir": "x"}, "data_dir: this setting applies only to kind=tfds; leave it empty"),
        (
            "documents",
            "text",
            {"document": "separator", "separator": ""},
            "separator: this setting must not be empty if",
        ),
        ("documents", "squad", {}, "kind: squad does not support documents; use embedded or text or jsonl"),
        ("tags", "conll", {"label_field": "1"}, "label_field: '1' is the word column"),
    ],
)
def test_unfitting_settings_are_refused_before_any_file_is_opened(wants, kind, options, message):
    with pytest.raises(UserError, match=message):
        open_reader(SourceConfig(kind=kind, path="no/such/file", **options), READERS[wants])


def test_sources_need_a_path_unless_they_are_embedded():
    refused = []
    for kind in ("embedded", "text"):
        check_source(
            SourceConfig(kind=kind), READERS["documents"], lambda *each, kind=kind: refused.append((kind, each[0]))
        )
    assert refused == [("text", "path")]


def test_importing_the_formats_loads_no_library_of_theirs():
    code = "import sys, lm.data.reading; print({'jax', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
