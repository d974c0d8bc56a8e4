"""Tables that can be read in two ways are refused; quoting is recognised; a pattern finds the label in a line."""

import gzip

import pytest

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS, Labelled, Pair
from lm.errors import UserError

LABELS = {"label_field": "label"}


def read(path, wants="labels", kind="tsv", **options):
    if wants == "labels" and kind != "text":
        options = LABELS | options
    return list(open_reader(SourceConfig(kind=kind, path=path, **options), READERS[wants]).iterate())


@pytest.mark.parametrize("kind", ["tsv", "csv"])
@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("text,label,text|a,x,b", {}, "2 columns are called 'text'; rename all but one"),
        ("a,x", {"columns": "text,label,label"}, "2 columns are called 'label'"),
        ("text,label|a,x|text,label|b,y", {}, "line 3: this line repeats the column names, .* remove it"),
        ("text,label|a,x|Text, Label |b,y", {}, "line 3: this line repeats the column names"),
        (
            "text,label|a,x",
            {"columns": "text,label"},
            "line 1: this line repeats the column names, .* do not set `columns`",
        ),
        ("text,label|a,x,b", {}, "line 2: this row has 3 fields, but the first line has 2"),
        ("text,label|a", {}, "line 2: this row has 1 fields, but the first line has 2"),
    ],
)
def test_ambiguous_tables_are_refused(write, kind, rows, options, message):
    content = rows.replace("|", "\n").replace(",", "\t" if kind == "tsv" else ",")
    with pytest.raises(UserError, match=message):
        read(write(f"a.{kind}", content), kind=kind, **options)


@pytest.mark.parametrize("kind", ["tsv", "csv"])
def test_unambiguous_tables_are_read(write, kind):
    def table(rows):
        return write(f"a.{kind}", rows.replace("|", "\n").replace(",", "\t" if kind == "tsv" else ","))

    want = [Labelled("a", None, "x"), Labelled("b", None, "y")]
    assert read(table("id,text,id,label|1,a,2,x|1,b,2,y"), kind=kind) == want, "the double column is not used"
    assert read(table("text,label|a,x,,|b,y,"), kind=kind) == want, "values that are too many are empty"
    assert read(table("a,x,more|b,y"), kind=kind, columns="text,label") == want
    assert read(table("text|a|text|b"), "documents", kind) == ["a", "text", "b"]


def test_columns_of_one_name_are_refused_in_parquet(tmp_path):
    pyarrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["text", "label", "text"]
    path = tmp_path / "a.parquet"
    library.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=names), path)
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns are called 'text'"):
        read(str(path), kind="parquet")
    assert read(str(path), "documents", "parquet", field="label") == ["a"]


def test_invalid_text_in_parquet_is_refused(tmp_path):
    pyarrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offsets = pyarrow.array([0, 1, 3], pyarrow.int32()).buffers()[1]
    texts = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"a\xff\xfe"))
    library.write_table(pyarrow.Table.from_arrays([texts], names=["text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: field 'text' is not valid UTF-8 at byte 0"):
        read(str(tmp_path / "a.parquet"), "documents", "parquet")


QUOTED = 'text\tlabel\n"He said ""no"""\tx\nplain\ty\n'


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (QUOTED, {}, r"values are quoted as in CSV, e.g. '\"He said \"\"no\"\"\"'; use kind='csv'"),
        ('"a b"\t"x"\n"c"\t"y"\n', {"columns": "text,label"}, "values are quoted as in CSV, e.g. '\"a b\"'"),
        ('text\tlabel\na\t"x"\nb\t"y"\n', {}, "values are quoted as in CSV, e.g. '\"x\"'"),
        (
            '"text"\t"label"\n"a"\t"x"\n',
            {},
            "no field 'text'; .* quoted as in CSV: use kind='csv', which also accepts tabs",
        ),
        (
            'text\tlabel\n"first\nsecond"\tx\n',
            {},
            "line 2: this row has 1 fields, .* If quoted values contain tabs or line breaks, use",
        ),
        (
            'text\tlabel\n"one\ttwo"\tx\n',
            {},
            "line 2: this row has 3 fields, .* quoted values contain tabs or line breaks, use kind='csv'",
        ),
    ],
)
def test_quoted_values_of_tsv_are_refused_and_kind_csv_reads_them(write, content, options, message):
    path = write("a.tsv", content)
    with pytest.raises(UserError, match=message):
        read(path, **options)
    assert all('"' not in each.label for each in read(path, kind="csv", **options))


def test_quotation_marks_that_are_text_stay(write):
    speech = 'text\tlabel\n"Help!"\tx\n"Go," he said.\tx\n"A?""B."\ty\nc\ty\n'
    assert [each.text for each in read(write("a.tsv", speech))] == ['"Help!"', '"Go," he said.', '"A?""B."', "c"]
    pairs = write("b.tsv", 's\tt\n"Help!"\t"Hilfe!"\na\tb\n')
    assert read(pairs, "pairs", field="s", target_field="t")[0] == Pair('"Help!"', ('"Hilfe!"',))


@pytest.mark.parametrize(
    ("name", "content", "options", "want"),
    [
        ("a.tsv", QUOTED, {}, ['He said "no"', "plain"]),
        ("a.txt", 'text\tlabel\n"a\tb\nc"\tx\n', {}, ["a\tb\nc"]),
        ("a.tsv", '"a, b"\tx\nc, d\ty\n', {"columns": "text,label"}, ["a, b", "c, d"]),
        ("a.tab.gz", gzip.compress(b'"a, b"\tx\n', mtime=0), {"columns": "text,label"}, ["a, b"]),
        ("a.csv", 'text;label\n"a;b";x\n', {}, ["a;b"]),
        ("a.csv", '"text;a;b",text,label\n1,c,x\n', {}, ["c"]),
        ("a.csv", 'text,label\r\n"a\r\n",x\r\n" b ",y', {}, ["a\n", " b "]),
        ("a.csv", '"text","label"\n"","x"\n', {}, [""]),
    ],
)
def test_csv_follows_rfc_4180_with_any_of_three_separators(write, name, content, options, want):
    assert [each.text for each in read(write(name, content), kind="csv", **options)] == want


TREC = "DESC:manner How did it end ?\r\n\nENTY:animal What is a dog ?\n"
PATTERN = r"(?P<label>\w+):\w+ (?P<text>.*)"


def test_a_pattern_finds_the_label_in_a_line(write):
    path = write("trec.label", TREC)
    options = {"kind": "text", "document": "line"}
    want = [Labelled("How did it end ?", None, "DESC"), Labelled("What is a dog ?", None, "ENTY")]
    assert read(path, pattern=PATTERN, **options) == want
    numbers = write("n.txt", "a text | 1.50\n")
    assert read(numbers, "numbers", pattern=r"(?P<text>.*) \| (?P<label>.*)", **options) == [
        Labelled("a text", None, "1.50")
    ]
    first = open_reader(SourceConfig(path=path, pattern=PATTERN, document="line"), READERS["labels"])
    second = open_reader(SourceConfig(path=path, pattern=PATTERN + "?", document="line"), READERS["labels"])
    assert first.fingerprint() != second.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": PATTERN, "document": "file"}, "document: labels in text files are read line by line"),
        ({"pattern": PATTERN, "label_pattern": "(?P<label>x)"}, "label_pattern: give a pattern that finds the label"),
        ({}, "label_pattern: give a pattern that finds the label in a file's path .or, if lines hold"),
        (
            {"label_pattern": "(?P<label>x) (?P<text>y)"},
            "is matched against paths, which contain no text; to match lines, use",
        ),
        ({"pattern": "(?P<label>x)"}, "pattern: .* has no group named text; use a pattern such as "),
        ({"pattern": "(?P<source>x)(?P<target>y)"}, "no group named label and none named text"),
        ({"pattern": "(?P<label>x) (?P<text>y)"}, "line 1: pattern .* does not match 'DESC:manner How did it end"),
        ({"pattern": "(?P<label>X)?(?P<text>.*)"}, "line 1: pattern .* does not match"),
        ({"pattern": "(?P<label> *)(?P<text>.*)"}, "line 1: field 'label' holds no label"),
    ],
)
def test_patterns_without_a_label_are_refused(write, options, message):
    with pytest.raises(UserError, match=message):
        read(write("trec.label", TREC), kind="text", **{"document": "line", **options})


@pytest.mark.parametrize("kind", ["tsv", "csv"])
@pytest.mark.parametrize("row", ["text,label,", "text,label,7", "TEXT, Label ,id"])
def test_a_repeated_header_is_recognised_by_the_needed_columns(write, kind, row):
    path = write(f"a.{kind}", f"text,label,id\na,x,1\n{row}\n".replace(",", "\t" if kind == "tsv" else ","))
    for wants in ("labels", "documents"):
        options = LABELS if wants == "labels" else {"label_field": ""}
        with pytest.raises(UserError, match="line 3: this line repeats the column names"):
            read(path, wants, kind, **options)


def test_a_text_that_equals_its_column_name_is_no_header(write):
    path = write("a.tsv", "text\tlabel\tid\ntext\tx\t1\nb\tlabel\t2\n")
    assert read(path) == [Labelled("text", None, "x"), Labelled("b", None, "label")]
    assert read(path, "documents") == ["text", "b"]
    assert read(write("b.tsv", "text\t\t\ntext\tx\t\n"), "documents") == ["text"]


def test_quoting_with_one_stray_mark_is_noted(write):
    path = write("a.tsv", 'text\tlabel\n"good"\tx\n"bad"\ty\n5" pipe\tx\n')
    reader = open_reader(SourceConfig(kind="tsv", path=path, **LABELS), READERS["labels"])
    for _ in range(2):
        assert [each.text for each in reader.iterate()] == ['"good"', '"bad"', '5" pipe']
        (note,) = reader.notes()
        assert "2 values are quoted as in CSV, e.g. '\"good\"', but '5\" pipe' is not" in note
    path = write("b.tsv", 'text\tlabel\n"good"\tx\nbad\ty\n5" pipe\tx\n')
    reader = open_reader(SourceConfig(kind="tsv", path=path, **LABELS), READERS["labels"])
    assert len(list(reader.iterate())) == 3 and reader.notes() == []


@pytest.mark.parametrize("width", ["float16", "float32", "float64"])
def test_numbers_in_parquet_are_read_in_their_own_width(tmp_path, width):
    pyarrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    kind, values = getattr(pyarrow, width)(), [0.1, 1.0, -2.5]
    table = {
        "text": ["a", "b", "c"],
        "label": pyarrow.array(values, kind),
        "tags": pyarrow.array([values] * 3, pyarrow.list_(kind)),
        "inside": pyarrow.array([{"x": each} for each in values], pyarrow.struct({"x": kind})),
        "words": [["p", "q", "r"]] * 3,
    }
    path = str(tmp_path / "a.parquet")
    library.write_table(pyarrow.table(table), path)
    for name in ("label", "inside.x"):
        assert [each.label for each in read(path, kind="parquet", label_field=name)] == ["0.1", "1", "-2.5"]
        identity = open_reader(
            SourceConfig(kind="parquet", path=path, label_field=name), READERS["labels"]
        ).source.identity()
        assert len(identity) == (2 if width == "float64" else 3), "no store of an earlier version is used"
    numbers = read(path, "numbers", "parquet", label_field="label")
    assert [each.label for each in numbers] == ["0.1", "1.0", "-2.5"]
    tagged = read(path, "tags", "parquet", field="words", label_field="tags")
    assert [each.tags for each in tagged] == [("0.1", "1", "-2.5")] * 3
