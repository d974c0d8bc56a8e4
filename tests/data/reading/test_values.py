"""A value means the same in every format, whatever its type; a missing or unfitting value is refused."""

import csv
import json

import numpy as np
import pytest

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS, Pair
from lm.errors import UserError


@pytest.fixture
def open_as(tmp_path, monkeypatch):
    """Returns a function that writes records in a format and opens them."""

    def open_records(kind, records, wants="labels", **options):
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        elif kind in ("tsv", "csv"):
            rows = [list(records[0]), *(["" if v is None else str(v) for v in record.values()] for record in records)]
            with path.open("w", newline="") as file:
                csv.writer(file, "excel-tab" if kind == "tsv" else "excel").writerows(rows)
        elif kind == "parquet":
            pyarrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            library.write_table(pyarrow.Table.from_pylist(records), path)
        else:
            examples = [
                {name: v.encode() if isinstance(v, str) else np.array(v)[()] for name, v in each.items()}
                for each in records
            ]
            monkeypatch.setattr("lm.data.reading.tfds.Tfds._find_builder", lambda self: None)
            monkeypatch.setattr("lm.data.reading.tfds.Tfds._open_split", lambda self: examples)
        return open_reader(SourceConfig(kind=kind, path=str(path), **options), READERS[wants])

    return open_records


def records(*labels):
    return [{"text": f"t{number}", "label": label} for number, label in enumerate(labels)]


def labels_of(reader):
    return [example.label for example in reader.iterate()]


EVERY = pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet", "tfds"])


@EVERY
@pytest.mark.parametrize(
    ("values", "names", "want"),
    [
        ((0, 1), (), ["0", "1"]),
        ((0.0, 1.0, -2.0), (), ["0", "1", "-2"]),
        ((2.5, 1.0), (), ["2.5", "1"]),
        ((True, False), (), ["true", "false"]),
        (("1.0", "1", "007", "1.10", "-0.0"), (), ["1", "1", "007", "1.1", "0"]),
        (("True", "false"), (), ["true", "false"]),
        ((1, 0), ("no", "yes"), ["yes", "no"]),
        ((1.0, 0.0), ("no", "yes"), ["yes", "no"]),
        ((True, False), ("no", "yes"), ["yes", "no"]),
        (("yes", "0"), ("no", "yes"), ["yes", "no"]),
        ((1, 2, 3), ("1", "2", "3"), ["1", "2", "3"]),
        (("1", "3"), ("1", "2", "3"), ["1", "3"]),
        ((0, 1), ("0", "1"), ["0", "1"]),
        (("none", "NONE", "na"), (), ["none", "NONE", "na"]),
        ((5.0, 1.0), ("1.0", "5.0"), ["5.0", "1.0"]),
        (("NA", "None"), ("None", "NA"), ["NA", "None"]),
    ],
)
def test_labels_are_the_same_in_every_format(open_as, kind, values, names, want):
    assert labels_of(open_as(kind, records(*values), label_field="label", label_names=names)) == want


@EVERY
@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        (float("nan"), (), "holds no label"),
        (float("nan"), ("no", "yes"), "holds no label"),
        ("", (), "holds no label"),
        ("NaN", (), "holds no label, only 'NaN'; if this text is a label, list all labels in label_names"),
        ("null", ("no", "yes"), "holds no label, only 'null'"),
        ("NAN", (), "holds no label, only 'NAN'"),
        ("<NA>", (), "holds no label"),
        (r"\N", (), "holds no label"),
        (2, ("no", "yes"), "label 2 has no name; label_names covers only the labels 0 to 1"),
        (-1, ("no", "yes"), "label -1 has no name"),
        (
            0,
            ("1", "2"),
            "label 0 is not one of label_names. Because some of these names are integers, integers are read as names",
        ),
        (True, ("a", "b", "c"), "label 'true' is neither an integer nor one of label_names"),
        (0.5, ("a", "b", "c"), "label '0.5' is neither an integer nor one of label_names"),
    ],
)
def test_missing_and_unknown_labels_are_refused_in_every_format(open_as, kind, value, names, message):
    data = records(value, value)  # so that a column of Parquet has one type
    with pytest.raises(UserError, match=f"(line 2|line 1|row 1|example 0).*{message}"):
        labels_of(open_as(kind, data, label_field="label", label_names=names))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_null_labels_and_texts_are_refused(open_as, kind):
    with pytest.raises(UserError, match=r"(line|row) 2: field 'label' holds no label; add one or remove the record"):
        labels_of(open_as(kind, records(1, None), label_field="label"))
    with pytest.raises(UserError, match=r"(line|row) 2: field 'text' should hold text, but its value is missing"):
        data = [{"text": "a", "label": 1}, {"text": None, "label": 1}]
        labels_of(open_as(kind, data, label_field="label"))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ((0, 1), None),
        (("a", "1"), None),
        ((0, 1.0, 1), "labels have several types (1 decimals, 2 integers); equal values count as one label"),
        ((1, "1", "a"), "labels have several types (1 integers, 2 texts); equal values count as one label"),
        (("1.0", "2.50"), "2 labels have decimals; labels such as 1.0 and 0.50 are read as 1 and 0.5"),
        (
            (10, "010"),
            "labels have several types (1 integers, 1 texts); equal values count as one label, except for "
            "some spellings of numbers|'010' and '10' are different labels, although they are equal as numbers",
        ),
        (
            ("1", "01", "1e0", "+1", "1e" + "9" * 30, "a"),
            "'+1' and '01' and '1' and '1e0' are different labels, although they are equal as numbers",
        ),
        (
            ("1", "01", "2", "02", "3", "03", "4", "04"),
            "|".join(
                f"'0{each}' and '{each}' are different labels, although they are equal as numbers" for each in (1, 2, 3)
            )
            + "|1 more groups of labels are equal as numbers",
        ),
    ],
)
def test_labels_of_several_types_are_noted(open_as, values, note):
    reader = open_as("jsonl", records(*values), label_field="label")
    for _ in range(2):
        assert len(labels_of(reader)) == len(values) and reader.notes() == (note.split("|") if note else [])


@pytest.mark.parametrize("values", [(True, 1), (0.0, False), (1, 2, True)])
def test_booleans_among_numbers_are_refused(open_as, values):
    with pytest.raises(
        UserError, match=f"line {len(values)}: field 'label' holds .* but earlier labels have a different"
    ):
        labels_of(open_as("jsonl", records(*values), label_field="label"))


def test_infinite_and_structured_labels_are_refused(open_as):
    for value, message in ((float("inf"), "holds inf, which is not a label"), ({"a": 1}, "should hold a label, but")):
        with pytest.raises(UserError, match=message):
            labels_of(open_as("jsonl", records(value), label_field="label"))
    assert labels_of(open_as("jsonl", records(10**400, 1e300), label_field="label")) == [str(10**400), str(int(1e300))]


@EVERY
def test_numbers_are_the_same_in_every_format(open_as, kind):
    found = labels_of(open_as(kind, records(1.0, -2.5, 1e15, 1e-30), "numbers", label_field="label"))
    assert [float(each) for each in found] == [1.0, -2.5, 1e15, 1e-30]


@EVERY
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e300, r"1e\+300 is out of range: .* absolute values must not exceed 1e\+15; rescale the numbers"),
        (-1e16, r"-1e\+16 is out of range"),
        (float("nan"), "'nan' is not a finite number"),
        (float("inf"), "'inf' is not a finite number"),
        ("1_000", "'1_000' is not a finite number"),
        ("3,5", "'3,5' is not a finite number"),
        ("٣", "is not a finite number"),
        ("", "does not hold a number"),
    ],
)
def test_unusable_numbers_are_refused_in_every_format(open_as, kind, value, message):
    with pytest.raises(UserError, match=message):
        labels_of(open_as(kind, records(value), "numbers", label_field="label"))


def test_regression_refuses_names_and_booleans(open_as):
    with pytest.raises(UserError, match="label_names: regression reads numbers, which have no names"):
        open_as("jsonl", records(1), "numbers", label_field="label", label_names=("a",))
    with pytest.raises(UserError, match="line 1: field 'label' should hold a number, but holds the bool True"):
        labels_of(open_as("jsonl", records(True), "numbers", label_field="label"))


def question(**changes):
    answers = {"text": ["b"], "answer_start": [2]}
    return {"id": "1", "title": "T", "question": "q", "context": "a b", "answers": answers, **changes}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "squad"])
def test_questions_with_typed_fields(open_as, write, kind):
    def read(**changes):
        record = question(**changes)
        if kind != "squad":
            return next(open_as(kind, [record], "questions").iterate())
        pairs = zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True)
        entry = record | {"answers": [{"text": text, "answer_start": start} for text, start in pairs]}
        content = {"data": [{"title": record["title"], "paragraphs": [{"context": "a b", "qas": [entry]}]}]}
        path = write("a.json", json.dumps(content))
        return next(open_reader(SourceConfig(kind=kind, path=path), READERS["questions"]).iterate())

    assert read().placed == (("b", 2),)
    found = read(id=7, title=1917)
    assert (found.id, found.title) == ("7", "1917")
    assert read(answers={"text": ["b"], "answer_start": [2.0]}).placed == (("b", 2),)
    for flag in ("false", "False", 0, False, None, ""):
        assert len(read(is_impossible=flag).answers) == 1, flag
    for flag in ("true", "TRUE", 1, True):
        assert read(is_impossible=flag).answers == (), flag
    for changes, message in (
        ({"is_impossible": "no"}, "field 'is_impossible' should hold true or false, but holds the str 'no'"),
        ({"id": 1.5}, "field 'id' should hold text, but holds the float 1.5"),
        ({"answers": {"text": ["b"], "answer_start": [1.5]}}, "answer_start 1.5 is not a character offset"),
        ({"answers": {"text": ["b"], "answer_start": [None]}}, "answer_start None is not a character offset"),
    ):
        with pytest.raises(UserError, match=message):
            read(**changes)


def test_answers_without_an_offset_are_counted_and_never_found_from_the_end(write):
    answers = [{"text": "b", "answer_start": -1}, {"text": "b", "answer_start": 2}, {"text": "a", "answer_start": 9}]
    entry = {"id": "q1", "question": "q", "answers": answers}
    content = {"data": [{"paragraphs": [{"context": "a b", "qas": [entry]}]}]}
    path = write("cmrc.json", json.dumps(content))
    reader = open_reader(SourceConfig(kind="squad", path=path), READERS["questions"])
    (found,) = reader.iterate()
    assert [start for _, start in found.answers] == [-1, 2, 9] and found.placed == (("b", 2),)
    assert reader.notes_on([found])[0].startswith(
        "2 answers do not match the context at answer_start (first: question 'q1')"
    )


@EVERY
def test_several_target_fields_name_several_references(open_as, kind):
    data = [{"s": "x", "a": "A", "b": "B"}, {"s": "y", "a": "", "b": "B"}, {"s": "z", "a": "", "b": ""}]
    options = {"field": "s", "target_field": "a, b"}
    found = list(open_as(kind, data, "pairs", **options).iterate())
    assert found == [Pair("x", ("A", "B")), Pair("y", ("B",)), Pair("z", ("",))]
    with pytest.raises(UserError, match="there is no field 'c'; available fields"):
        list(open_as(kind, data, "pairs", field="s", target_field="a,c").iterate())
    with pytest.raises(UserError, match="target_field 'a, ': one of the names between commas is empty"):
        open_as(kind, data, "pairs", field="s", target_field="a,")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_target_fields_may_be_missing_lists_or_templates(open_as, kind):
    data = [{"s": "x", "a": ["A", "AA"], "b": "B"}, {"s": "y", "a": ["A"], "b": None}]
    found = list(open_as(kind, data, "pairs", field="s", target_field="a,b").iterate())
    assert found == [Pair("x", ("A", "AA", "B")), Pair("y", ("A",))]
    one = list(open_as(kind, data[:1], "pairs", field="s", target_field="{b}, {b}").iterate())
    assert one == [Pair("x", ("B, B",))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "label": 1, "label": 2}', "line 1: the name 'label' occurs more than once in an object"),
        ('{"text": {"a": 1, "a": 1}, "label": 1}', "line 1: the name 'a' occurs more than once in an object"),
        ("[" * 100_000, r"line 1: this is not valid JSON \(it is nested more than 100 levels deep\)"),
    ],
)
def test_ambiguous_json_is_refused(write, line, message):
    for kind, wants, options in (("jsonl", "labels", {"label_field": "label"}), ("squad", "questions", {})):
        reader = open_reader(SourceConfig(kind=kind, path=write("a.json", line), **options), READERS[wants])
        with pytest.raises(UserError, match=message if kind == "jsonl" else message.replace("line 1: ", "")):
            list(reader.iterate())


@pytest.mark.parametrize("names", [("a", "b", "a"), ("1", "1.0"), ("True", "true")])
def test_label_names_that_are_one_label_are_refused(open_as, names):
    with pytest.raises(UserError, match=f"label_names: '{names[0]}' and '{names[-1]}' are the same label; remove one"):
        labels_of(open_as("jsonl", records("a"), label_field="label", label_names=names))


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.5, "0.5", "0.50"], ["0.5"] * 3),
        (["1", "1.0", 1, 1.0, "01", "+1", "1e0"], ["1"] * 4 + ["01", "+1", "1e0"]),
        (["-0", 0, -0.0, "-0.00", "0."], ["0"] * 5),
        ([2**60, float(2**60), f"{2**60}.0", str(2**60), 2**60 + 1], [str(2**60)] * 4 + [str(2**60 + 1)]),
        ([1e-5, "0.00001", "0.000010", "1e-05"], ["0.00001"] * 3 + ["1e-05"]),
        ([-2.25, "-2.250", "-02.25", "1.2.0", "1,0", ".5", "١"], ["-2.25"] * 2 + ["-02.25", "1.2.0", "1,0", ".5", "١"]),
    ],
)
def test_plain_numbers_of_equal_value_are_one_label(open_as, values, want):
    assert labels_of(open_as("jsonl", records(*values), label_field="label")) == want
