"""CSV is read as by Python's csv module; malformed rows are refused, and the error names the line where they begin."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS, Labelled, Pair
from lm.errors import UserError


def read(wants="documents", **options):
    return list(open_reader(SourceConfig(kind="csv", **options), READERS[wants]).iterate())


def test_quoted_values_hold_commas_quotes_and_line_breaks(write):
    path = write("a.csv", 'id,text\r\n1,"a, ""b""\r\nc\n"\r\n\r\n2,plain\n')
    assert read(path=path) == ['a, "b"\nc\n', "plain"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1), min_size=1, max_size=5))
def test_values_written_by_the_csv_module_come_back(tmp_path_factory, texts):
    out = io.StringIO()
    csv.writer(out).writerows([["text", "n"], *([text, number] for number, text in enumerate(texts))])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(out.getvalue().encode())
    assert read(path=str(path)) == texts


def test_semicolons_columns_pairs_and_labels(write):
    assert read(path=write("a.csv", "text;n\na, b;1\n")) == ["a, b"]
    path = write("b.csv", 'walk,"W;1"\nrun,R;2;3\n')
    options = {"path": path, "columns": "source, target", "field": "source", "target_field": "target"}
    assert read("pairs", **options) == [Pair("walk", ("W;1",)), Pair("run", ("R;2;3",))]
    assert read("labels", **options | {"target_field": "", "label_field": "target"})[1] == Labelled(
        "run", None, "R;2;3"
    )


def test_values_may_be_long(write):
    assert read(path=write("a.csv", f"text\n{'x' * 200_000}\n")) == ["x" * 200_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,n\na,1\n"b\nc",2\n"d"e,3\n', "line 5: this is not a valid CSV row"),
        ('text,n\na,1\n"b\nc,2\n', "line 3: this is not a valid CSV row .unexpected end of data"),
        ("n,text\n1\n", "line 2: this row has 1 fields, but the first line has 2"),
        ("id,n\n1,2\n", "no field 'text'; available fields: 'id', 'n'"),
        ("text,n\n", "contains no documents"),
        ("", "no field 'text'"),
    ],
)
def test_broken_files_are_refused_with_the_line(write, content, message):
    with pytest.raises(UserError, match=rf"a\.csv.*{message}"):
        read(path=write("a.csv", content))
