"""Bytes that are not content never become text: byte-order marks, compressed files, UTF-16, and lone CRs."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import tarfile
import zipfile

import pytest

from lm.config import SourceConfig
from lm.data.reading import encodings, open_reader
from lm.data.reading.readers import READERS
from lm.decoding.lines import read_lines
from lm.errors import UserError
from lm.evaluation.predictions import read_predictions


def source(examples="documents", **options):
    return open_reader(SourceConfig(**options), READERS[examples])


def read(examples="documents", **options):
    return list(source(examples, **options).iterate())


def refusal(function, *args, **options):
    with pytest.raises(UserError) as error:
        function(*args, **options)
    message = str(error.value)
    assert len(message) <= 500 and "\n" not in message, message
    return message


PLAIN = b"x\n"
TABLE = "pos\tgood film\nneg\tbad film\n"
TAGS = "Berlin\tB-LOC\nlies\tO\n\nParis\tB-LOC\nsleeps\tO\n"
SQUAD = {"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "q", "answers": []}]}]}]}
# How each reader is used, and the text of its file.
READINGS = {
    "file": ({"path": "F"}, TABLE),
    "line": ({"path": "F", "document": "line"}, TABLE),
    "paragraph": ({"path": "F", "document": "paragraph"}, TAGS),
    "separator": ({"path": "F", "document": "separator", "separator": "lies"}, TAGS),
    "tsv": ({"path": "F", "kind": "tsv", "columns": "text,label"}, TABLE),
    "csv": ({"path": "F", "kind": "csv"}, '"text",n\none,1\n"two\nlines",2\n'),
    "jsonl": ({"path": "F", "kind": "jsonl"}, '{"text": "a"}\n\n{"text": "b"}\n'),
    "labels": (
        {"examples": "labels", "path": "F", "kind": "tsv", "columns": "label,text", "label_field": "label"},
        TABLE,
    ),
    "aligned": ({"examples": "pairs", "path": "F", "target_path": "F", "document": "line"}, TABLE),
    "pattern": (
        {"examples": "pairs", "path": "F", "pattern": "(?P<source>.*)\t(?P<target>.*)", "document": "line"},
        TABLE,
    ),
    "conll": ({"examples": "tags", "path": "F", "kind": "conll"}, TAGS),
    "squad": ({"examples": "questions", "path": "F", "kind": "squad"}, json.dumps(SQUAD, indent=0) + "\n"),
}


@pytest.fixture(params=READINGS)
def reading(request, write):
    """Returns a function that reads bytes in one of the ways, and the text to use."""
    options, text = READINGS[request.param]
    options = dict(options)
    examples = options.pop("examples", "documents")

    def read_bytes(content, name="file", **more):
        path = write(name, content)
        paths = {setting: path for setting, value in options.items() if value == "F"}
        return read(examples, **{**options, **paths, **more})

    return read_bytes, text


def test_byte_order_marks_are_no_text_in_any_reader(reading):
    read_bytes, text = reading
    plain = read_bytes(text.encode())
    assert read_bytes(b"\xef\xbb\xbf" + text.encode()) == plain
    assert read_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()), "file.gz") == plain
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"):
        marked = text.encode(encoding) if encoding in ("utf-16", "utf-32") else ("\ufeff" + text).encode(encoding)
        assert read_bytes(marked, encoding=encoding) == plain, encoding


def test_other_kinds_of_files_are_refused_by_name_in_every_reader(reading):
    read_bytes, text = reading
    archive, tape = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", text)
    with tarfile.open(fileobj=tape, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    packed = gzip.compress(text.encode())
    for content, name, message in [
        (packed, "file", "is gzip data, but its name does not end in .gz"),
        (gzip.compress(packed), "file.gz", "unpacks to gzip data"),
        (archive.getvalue(), "file", "is a zip archive"),
        (tape.getvalue(), "file", "is a tar archive"),
        (gzip.compress(tape.getvalue()), "file.tar.gz", "unpacks to a tar archive"),
        (bz2.compress(text.encode()), "file", "is bzip2 data"),
        (lzma.compress(text.encode()), "file", "is xz data"),
        (b"PAR1\x15\x04", "file", "is a Parquet file; choose the format parquet, or convert"),
        (text.encode("utf-16"), "file", "byte-order mark of utf-16-le, but is read as utf-8; set .* to utf-16$"),
        (b"\xfe\xff" + text.encode("utf-16-be"), "file", "byte-order mark of utf-16-be.* to utf-16$"),
        (text.encode("utf-32"), "file", "byte-order mark of utf-32-le, .* to utf-32$"),
        (text.encode("utf-16-le"), "file", "looks like utf-16-le, but is read as utf-8; set .* to utf-16-le$"),
        (text.encode("utf-32-be"), "file", "looks like utf-32-be, .* to utf-32-be$"),
        (text.replace("\n", "\r").encode(), "file", "the lines end in CR .* alone"),
    ]:
        found = refusal(read_bytes, content, name).removesuffix(".")
        assert re.search(message, found), found


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("text".encode("utf-16-le"), "utf-16", "begins without a byte-order mark, .* to utf-16-le"),
        (b"\xe4\xb8\xad\xe6\x96\x87", "utf-16", "begins without a byte-order mark, .* to utf-16-le or utf-16-be"),
        (b"plain text\n", "utf-16", "is ASCII text, but is read as utf-16; .* to utf-8"),
        (b"plain text\n", "utf-16-le", "is ASCII text, but is read as utf-16-le; .* to utf-8"),
        (b"\xef\xbb\xbftext", "latin-1", "byte-order mark of utf-8, but is read as latin-1; .* to utf-8"),
        ("text".encode("utf-16"), "latin-1", "byte-order mark of utf-16-le, but is read as latin-1"),
        (b"\xfe\xff\0a", "utf-16-le", "byte-order mark of utf-16-be, but is read as utf-16-le"),
        (b"text", "hex", "encoding 'hex' is unknown"),
        (b"text", "undefined", "not valid undefined"),
        ("é\nab".encode("utf-16-le") + b"\x00\xdc\n\0", "utf-16-le", "at line 2, byte 8: 0x00"),
        (
            b"ok\n" * 400_000 + b"\xff\n",
            "utf-8",
            "at line 400,001, byte 1,200,000: 0xff .*; set .* to the file's encoding",
        ),
    ],
)
def test_text_that_contradicts_its_encoding_is_refused(write, content, encoding, message):
    with pytest.raises(UserError, match=message):
        read(path=write("a.txt", content), encoding=encoding, document="line")


def test_lone_surrogates_become_replacement_characters(write):
    path = write("a.txt", r"a\ud800b \ud83d\ude00" + "\n")
    assert read(path=path, encoding="unicode_escape", document="line") == ["a\ufffdb \U0001f600"]


def test_marks_of_joined_files_and_pairs_of_cr_and_lf_across_blocks(write, monkeypatch):
    text = "\ufeff\ufeffone\r\r\r\n\ufefftwo \ufeff\r\n\ufeff\ufeff\ufeffthree\r\n"
    for size in (1, 2, 3, 5, 1000):
        monkeypatch.setattr(encodings, "BLOCK_BYTES", size)
        path = write("a.txt", text)
        assert read(path=path, document="line") == ["one", "two \ufeff", "three"], size
        assert read(path=path) == ["one\ntwo \ufeff\nthree\n"], size
        assert read(path=path, document="separator", separator="e\nt") == ["on", "wo \ufeff\nthree"], size
        assert source(path=path).source.identity()[-1].endswith(" without repeated marks"), size
        for encoding in ("utf-8-sig", "utf-16") if size > 1 else ():  # the first block must hold the first mark
            data = text.encode("utf-16-le" if encoding == "utf-16" else "utf-8")
            lines = read(path=write("b.txt", data), encoding=encoding, document="line")
            assert lines == ["one", "two \ufeff", "three"], size


def test_mark_changes_the_fingerprint_so_that_no_old_store_is_used(write):
    def parts(name, content):
        return source(path=write(name, content)).source.identity()[-1]

    assert parts("a", PLAIN) == f"False {hashlib.sha256(PLAIN).hexdigest()}", "as before"
    assert parts("b", b"\xef\xbb\xbfx\n").endswith("without marks")
    assert parts("c", b"x\n\xef\xbb\xbfy\n").endswith("without marks")
    assert parts("e", b"x\n\xef\xbb\xbf\xef\xbb\xbfy\n\xef\xbb\xbf").endswith("without repeated marks")
    assert parts("f.gz", gzip.compress(b"\xef\xbb\xbf" * 2)).endswith("without repeated marks")
    assert parts("d.gz", gzip.compress(b"\xef\xbb\xbfx\n")).endswith("without marks")


def test_lone_cr_within_a_row_is_refused_and_within_text_is_kept(write):
    rows = write("a.tsv", "pos\tgood\nneg\tbad\rpos\tfine\nneg\tx\n")
    options = {"kind": "tsv", "path": rows, "columns": "label,text", "label_field": "label"}
    assert "a.tsv, line 2: this line contains a carriage return" in refusal(read, "labels", **options)
    pattern = r"(?P<label>\w+)\t(?P<text>[\s\S]*)"
    for examples, options_of_text in [
        ("documents", {}),
        ("labels", {"pattern": pattern}),
        ("pairs", {"target_path": rows}),
    ]:
        found = refusal(read, examples, path=rows, document="line", **options_of_text)
        assert "a.tsv, line 2: this line contains a carriage return" in found
    assert "a.tsv, line 2: this line contains a carriage return" in refusal(read_lines, rows, "input")
    for options_of_text in ({}, {"document": "paragraph"}, {"document": "separator", "separator": "--"}):
        reader = source(path=rows, **options_of_text)
        for _ in range(2):
            assert "".join(reader.iterate()).strip() == "pos\tgood\nneg\tbad\rpos\tfine\nneg\tx"
            assert reader.notes() == ["1 carriage returns (CR) without a line feed are kept in the documents"]
    reader = source(path=write("c.txt", "a\r\r\nb\r"), document="line")
    assert list(reader.iterate()) == ["a", "b"] and reader.notes() == []
    ends = write("b.tsv", "pos\tgood\r\r\nneg\tbad\r\r\n")
    assert [each.text for each in read("labels", **{**options, "path": ends})] == ["good", "bad"]


def test_long_lines_and_documents_are_refused_before_they_fill_the_memory(write, monkeypatch):
    monkeypatch.setattr(encodings, "BLOCK_BYTES", 64)
    bomb = gzip.compress(b"a" * 10_000)
    lines = gzip.compress(b"ab\n" * 1000)
    for name, content, options, message in [
        ("a.gz", bomb, {"document": "line"}, "a.gz, line 1: this line has more than 100 characters; split"),
        ("a.txt", b"ok\n" + b"a" * 101 + b"\nok\n", {"document": "line"}, "a.txt, line 2: this line"),
        ("c.gz", bomb, {}, "c.gz: a document"),
        ("d.gz", lines, {}, "d.gz: a document (by default the whole file) has more than 100 characters"),
        ("e.gz", lines, {"document": "paragraph"}, "e.gz: a document"),
        ("f.gz", lines, {"document": "separator"}, "f.gz: a document"),
        ("g.gz", bomb, {"kind": "jsonl"}, "g.gz, line 1"),
        ("h.gz", bomb, {"kind": "tsv"}, "h.gz, line 1"),
        ("i.csv", b"text\n" + b'"' + b"ab\n" * 100 + b'"', {"kind": "csv"}, "field larger than field limit (100)"),
    ]:
        assert message in refusal(read, path=write(name, content), longest_line=100, **options), name
    assert csv.field_size_limit() > 100, "the limit of the csv module, which is global, is restored"
    assert len(read(path=write("j.txt", "ab\n" * 1000), document="line", longest_line=2)) == 1000
    assert (
        read(path=write("k.txt", "ab--" * 1000), document="separator", separator="--", longest_line=70)[:2]
        == ["ab"] * 2
    )


def test_lines_of_input_files_and_predictions_are_opened_in_the_same_way(tmp_path):
    path = tmp_path / "in"
    for content, lines in [
        (b"\xef\xbb\xbfa\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbf", []),
    ]:
        path.write_bytes(content)
        assert read_lines(str(path), "input") == lines
    for content, message in [
        ("a\nb".encode("utf-16"), "mark of utf-16-le, but is read as utf-8; convert it from utf-16 to UTF-8 first."),
        (gzip.compress(b"a\n"), "is gzip data, but its name does not end in .gz"),
        (b"a\rb\rc\r", "the lines end in CR (carriage return) alone"),
    ]:
        path.write_bytes(content)
        found = refusal(read_lines, str(path), "prompts_file")
        assert found.startswith(f"--prompts_file={path}: ") and message in found
        assert message in refusal(read_predictions, path)
    path.write_text("[" * 100_000)
    assert "line 1: expected a JSON object" in refusal(read_predictions, path)


def test_deeply_nested_json_is_refused_in_one_line(write):
    deep = "[" * 100_000 + "]" * 100_000
    for text in (deep, "[" * 100_000, "[" * 300 + "]" * 300):
        path = write("a.jsonl", '{"text": ' + text + "}\n")
        assert "a.jsonl, line 1: this is not valid JSON" in refusal(read, kind="jsonl", path=path)
        assert "not valid JSON" in refusal(read, "questions", kind="squad", path=write("a.json", text))


def test_parquet_with_invalid_utf8_names_the_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [b"ok"] * 1500 + [b"caf\xe9"] + [b"ok"] * 10
    bad = pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"n": list(range(len(values))), "text": bad}), path)
    message = refusal(read, kind="parquet", path=path)
    assert "a.parquet, row 1501: field 'text' is not valid UTF-8 at byte 3" in message


def test_no_message_quotes_a_whole_file(write):
    path = write("a.tsv", "\t".join(f"column{i}" for i in range(20_000)) + "\nx\n")
    message = refusal(read, kind="tsv", path=path)
    assert "no field 'text'; available fields: 'column0'" in message and "set `columns`.)" in message


@pytest.mark.parametrize("content", [b"PK\x05\x06" + bytes(18), b"PK\x07\x08PK\x03\x04"])
def test_empty_and_split_zip_archives_are_refused(write, content):
    assert "the file is a zip archive" in refusal(read, path=write("a.txt", content))


@pytest.mark.parametrize(
    ("encoding", "notes"),
    [
        ("cp1252", ["2 lines with bytes above 127 are read as cp1252"]),
        *((each, []) for each in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-8", "cp037")),
    ],
)
def test_lines_of_bytes_are_counted_only_where_they_are_lines_of_text(write, encoding, notes):
    text = "é\nplain\né" if encoding.startswith("cp") else "ȊéĊ\nplain\né"
    reader = source(path=write("a.txt", text.encode(encoding)), encoding=encoding)
    assert list(reader.iterate()) == [text] and reader.notes() == notes
