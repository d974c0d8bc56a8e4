"""Every format yields the exact texts, and a clear one-line error for files that it cannot read."""

import gzip
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import SourceConfig
from lm.data.reading import embedded, encodings, open_reader
from lm.data.reading.format import open_text
from lm.data.reading.readers import READERS
from lm.errors import UserError


def source(**options):
    return open_reader(SourceConfig(**options), READERS["documents"])


def read(**options):
    return list(source(**options).iterate())


def test_a_file_is_kept_to_the_character(write):
    path = write("a.txt", "  one\r\ntwo\u2028\x85\x0cthree\n\n")
    assert read(path=path) == ["  one\ntwo\u2028\x85\x0cthree\n\n"]


def test_lines_end_at_line_feeds_only(write):
    path = write("a.txt", "one\r\n\ntwo\u2028\x85\x0b x\nlast")
    assert read(path=path, document="line") == ["one", "", "two\u2028\x85\x0b x", "last"]


def expected_lines(text, longest, rows):
    """Returns the lines, without their ends, and the beginning of the error message after them, if any."""
    lines = text.split("\n")
    found = []
    for number, line in enumerate(lines[: len(lines) - (lines[-1] == "")], start=1):
        if len(line) > longest:
            return found, f"line {number:,}: this line has more than"
        line = line.rstrip("\r")
        if rows and "\r" in line:
            return found, f"line {number:,}: this line contains a carriage return"
        found.append(line)
    return found, None


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\r\n\n"), max_size=40),
    block=st.integers(1, 12),
    longest=st.integers(3, 12),
    rows=st.booleans(),
)
def test_lines_and_errors_do_not_depend_on_the_blocks(tmp_path_factory, text, block, longest, rows):
    text = "\n" * 12 + text  # a file whose first block has more CRs than LFs is refused
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text.encode())
    found, message = [], None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encodings, "BLOCK_BYTES", block)
        with open_text(path, SourceConfig(longest_line=longest)) as file:
            try:
                for line in file.lines(rows=rows):
                    found.append(line)
            except UserError as error:
                message = str(error)
    expected, problem = expected_lines(text, longest, rows)
    assert found == expected
    assert message is None if problem is None else problem in message


def test_paragraphs_and_separators(write):
    path = write("a.txt", "\n\na\nb\n \n\nc\n")
    assert read(path=path, document="paragraph") == ["a\nb", "c"]
    path = write("b.txt", "one\n<|endoftext|>\ntwo\n\nlines\n<|endoftext|>\n")
    assert read(path=path, document="separator") == ["one", "two\n\nlines"]
    assert read(path=path, document="separator", separator="two") == [
        "one\n<|endoftext|>",
        "lines\n<|endoftext|>",
    ]


def test_a_separator_is_found_across_blocks(write, monkeypatch):
    monkeypatch.setattr("lm.data.reading.encodings.BLOCK_BYTES", 3)
    path = write("a.txt", "one\r\n--SEP--two\r\n\r\nx--SEP----SEP--end")
    assert read(path=path, document="separator", separator="--SEP--") == ["one", "two\n\nx", "", "end"]


def test_globs_are_sorted_and_gz_is_unpacked(write, tmp_path):
    write("b.txt", "second")
    write("a.txt.gz", gzip.compress(b"first"))
    assert read(path=str(tmp_path / "*.txt*")) == ["first", "second"]


def test_json_lines(write):
    rows = [{"text": "a\u2028b\r\n", "x": 1}, {"text": "\ud800é"}]
    path = write("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(kind="jsonl", path=path) == ["a\u2028b\n", "\ufffdé"]


def test_tab_separated_values(write):
    path = write("a.tsv", 'id\ttext\n1\t"quoted" a\r\n\n2\tb\n')
    assert read(kind="tsv", path=path) == ['"quoted" a', "b"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "a.parquet")
    texts = [f"text {i}\r\n" for i in range(3000)]
    parquet.write_table(pyarrow.table({"n": list(range(3000)), "text": texts}), path, row_group_size=700)
    assert read(kind="parquet", path=path) == [text.replace("\r", "") for text in texts]
    with pytest.raises(UserError, match="no field 'body'; available fields: 'n', 'text'"):
        read(kind="parquet", path=path, field="body")
    with pytest.raises(UserError, match="row 1: field 'n' should hold text, but holds the int"):
        read(kind="parquet", path=path, field="n")


def test_bad_input_is_refused_with_its_position(write, tmp_path):
    cases = [
        ({"path": str(tmp_path / "none.txt")}, "there is no such file"),
        ({"path": str(tmp_path / "*.nothing")}, "no file matches"),
        ({"path": str(tmp_path)}, "is a directory"),
        ({"path": write("empty.txt", "")}, "contains no documents"),
        (
            {"path": write("latin.txt", b"ok\nna\xefve\n")},
            "not valid utf-8 at line 2, byte 5: 0xef .* set the source's enc",
        ),
        ({"path": write("x.txt", "x"), "encoding": "utf-99"}, "encoding 'utf-99' is unknown"),
        ({"path": write("bad.txt.gz", b"not gzip")}, "damaged or not a gzip"),
        ({"path": write("cut.txt.gz", gzip.compress(b"x" * 9999)[:20])}, "damaged or not a gzip"),
        (
            {"kind": "jsonl", "path": write("a.jsonl", '{"text": "a"}\n{"text": ')},
            "a.jsonl, line 2: this is not valid JSON",
        ),
        ({"kind": "jsonl", "path": write("b.jsonl", '["a"]')}, "line 1: expected a JSON object, but got list"),
        (
            {"kind": "jsonl", "path": write("c.jsonl", '{"body": "a"}')},
            "line 1: there is no field 'text'; available fields: 'body'",
        ),
        (
            {"kind": "jsonl", "path": write("d.jsonl", '{"text": 3}')},
            "line 1: field 'text' should hold text, but holds the int",
        ),
        ({"kind": "tsv", "path": write("a.tsv", "a\tb\n1\t2\n")}, "no field 'text'; available fields: 'a', 'b'"),
        (
            {"kind": "tsv", "path": write("b.tsv", "a\ttext\n1\n")},
            "line 2: this row has 1 fields, but the first line has 2",
        ),
        ({"kind": "parquet", "path": write("a.parquet", "no")}, "not a readable Parquet file"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message) as error:
            read(**options)
        assert "\n" not in str(error.value) and "Error" not in str(error.value), error.value


def test_fingerprint_depends_on_the_content_and_not_on_the_path(write):
    def fingerprint(**options):
        return source(**options).fingerprint()

    first = write("a.txt", "text")
    same = fingerprint(path=first)
    assert fingerprint(path=write("b.txt", "text")) == same
    assert fingerprint(path=first, weight=2.0) == same
    assert fingerprint(path=first, document="line") != same
    write("a.txt", "tex2")
    assert fingerprint(path=first) != same


@pytest.mark.exhaustive
def test_the_embedded_corpus_is_there_and_fixed():
    texts = read(kind="embedded")
    assert sum(map(len, texts)) > 1_500_000
    assert all(text.strip() for text in texts)
    assert any('The "with" statement' in text for text in texts), "topics of the language reference"
    assert any("JSON (JavaScript Object Notation)" in text for text in texts), "docstrings of the library"
    one, other = (source(kind="embedded").fingerprint() for _ in range(2))
    assert one == other


def test_python_without_documentation_is_refused(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text('"""Short."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    embedded.documents.cache_clear()
    with pytest.raises(UserError, match="only 14 characters of documentation"):
        read(kind="embedded")


@pytest.fixture(scope="module")
def prepared_tfds(tmp_path_factory):
    """Our own data set, prepared without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class LmTestText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            return ((i, {"text": f"line {i} é\r\n", "n": i}) for i in range(count))

    return str(tmp_path_factory.mktemp("tfds"))


def test_tfds_without_tensorflow(prepared_tfds):
    options = {"kind": "tfds", "path": "lm_test_text", "data_dir": prepared_tfds}
    texts = read(**options)  # prepares the data set first
    assert sorted(texts) == sorted(f"line {i} é\n" for i in range(10))
    assert read(**options) == texts
    assert len(read(**options, split="train[:30%]")) == 3
    train, other = source(**options), source(**options, split="test")
    assert train.source.identity() == ["lm_test_text/1.0.0", "train", "text"]
    assert train.fingerprint() != other.fingerprint()
    assert "tensorflow" not in sys.modules
    for change, message in [
        ({"field": "body"}, "no field 'body'; available fields: 'n', 'text'"),
        ({"field": "n"}, "field 'n' should hold text"),
        ({"split": "nope"}, r"split 'nope': .*splits: train, test|split 'nope': .*splits: test, train"),
        ({"path": "lm_no_such_set"}, "has no data set 'lm_no_such_set'"),
        ({"path": "lm_test_text:9.9.9"}, "lm_test_text:9.9.9: "),
    ]:
        with pytest.raises(UserError, match=message):
            read(**{**options, **change})


def test_tfds_that_needs_tensorflow_says_so():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UserError, match="preparing this data set requires TensorFlow"):
        read(kind="tfds", path="super_glue")
    assert "wmt14_translate" in source(kind="tfds", path="wmt14_translate/de-en").source.identity()[0]


def test_templates_dotted_names_lists_and_columns_serve_single_texts_too(write):
    row = {"question": "Who?", "answers": {"text": ["me", "I"]}}
    path = write("a.jsonl", json.dumps(row) + "\n")
    assert read(kind="jsonl", path=path, field="answers.text") == ["me I"]
    assert read(kind="jsonl", path=path, field="q: {question} a: {answers.text}") == ["q: Who? a: me I"]
    path = write("a.tsv", "one\tEins\n\ntwo\tZwei\n")
    assert read(kind="tsv", path=path, columns="en,de", field="de") == ["Eins", "Zwei"]
    assert read(kind="tsv", path=path, columns="en,de", field="{de} ({en})") == ["Eins (one)", "Zwei (two)"]
    with pytest.raises(
        UserError, match=r"no field 'text'.*come from the first line; if it is not a header, set `columns`"
    ):
        read(kind="tsv", path=path)
    columns = [source(kind="tsv", path=path, columns=names, field="de") for names in ("en,de", "de,en")]
    assert len({each.fingerprint() for each in columns}) == 2
