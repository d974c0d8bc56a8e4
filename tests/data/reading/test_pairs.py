"""Pairs are read exactly and in order; bad input is refused; dropped pairs are counted by reason."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from lm.config import CleaningConfig, PairsConfig, SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.readers import READERS, Pair
from lm.data.storing.splits import PairCleaner
from lm.errors import UserError


def read(**options):
    return list(open_reader(SourceConfig(**{"document": "line", **options}), READERS["pairs"]).iterate())


def pairs(*couples):
    return [Pair(source, (target,)) for source, target in couples]


def test_line_i_belongs_to_line_i_and_only_line_feeds_end_lines(write):
    path, target = write("a.en", "one\r\n\ntwo\u2028\x85 x\nlast"), write("a.de", "eins\n\nzwei\x0b\nletzte\n")
    want = pairs(("one", "eins"), ("", ""), ("two\u2028\x85 x", "zwei\x0b"), ("last", "letzte"))
    assert read(path=path, target_path=target) == want
    prefixed = [pair.with_prefix("to German: ") for pair in read(path=path, target_path=target, prefix="to German: ")]
    assert [pair.source for pair in prefixed] == ["to German: " + pair.source for pair in want]
    assert [pair.references for pair in prefixed] == [pair.references for pair in want]


def test_globs_are_aligned_file_by_file_and_unpacked(write, tmp_path):
    write("2.en", "c\n")
    write("1.en.gz", gzip.compress(b"a\nb\n"))
    write("1.de", "A\nB\n")
    write("2.de.gz", gzip.compress(b"C\n"))
    globs = {"path": str(tmp_path / "*.en*"), "target_path": str(tmp_path / "*.de*")}
    assert read(**globs) == pairs(("a", "A"), ("b", "B"), ("c", "C"))
    write("3.en", "d\n")
    with pytest.raises(UserError, match=r"\*\.en\* has 3 files, but .*\*\.de\* has 2"):
        read(**globs)


def test_a_pattern_cuts_a_line_in_two(write):
    path = write("scan.txt", "IN: walk OUT: I_WALK\r\n\nIN: a OUT: b OUT: c\n")
    pattern = "IN: (?P<source>.*?) OUT: (?P<target>.*)"
    assert read(path=path, pattern=pattern) == pairs(("walk", "I_WALK"), ("a", "b OUT: c"))
    swapped = "IN: (?P<target>.*?) OUT: (?P<source>.*)"
    assert read(path=path, pattern=swapped)[0] == Pair("I_WALK", ("walk",))


def test_tab_separated_pairs_with_and_without_a_line_of_names(write):
    with_names, without = write("a.tsv", "id\ten\tde\n1\ta\tA\n"), write("b.tsv", "a\tA\tby someone\n\nb\tB\n")
    assert read(kind="tsv", path=with_names, field="en", target_field="de") == pairs(("a", "A"))
    options = {"kind": "tsv", "path": without, "columns": "source, target", "field": "source", "target_field": "target"}
    assert read(**options) == pairs(("a", "A"), ("b", "B"))
    with pytest.raises(UserError, match=r"b\.tsv: there is no field 'text'; .*'source', 'target'.*from `columns`"):
        read(**{**options, "field": "text"})
    with pytest.raises(UserError, match="line 3: this row has 2 fields, but `columns` has 3"):
        read(**{**options, "columns": "source,target,by", "field": "by"})


RECORD = {
    "question": "Who?",
    "context": "It was {me}.",
    "answers": {"text": ["me", "I"], "start": [0, 1]},
    "parts": ["a", "b"],
    "none": [],
    "dotted.name": "dot",
}


@pytest.mark.parametrize(
    ("field", "target_field", "want"),
    [
        ("question", "answers.text", Pair("Who?", ("me", "I"))),
        ("parts", "parts", Pair("a b", ("a", "b"))),
        ("q: {question} c: {context} {{x}}", "{answers.text}", Pair("q: Who? c: It was {me}. {x}", ("me I",))),
        ("dotted.name", "none", Pair("dot", ("",))),
        ("{parts}{none}", "question", Pair("a b", ("Who?",))),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_of_fields_templates_and_lists(write, tmp_path, kind, field, target_field, want):
    path = write("a.jsonl", json.dumps(RECORD) + "\n")
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = str(tmp_path / "a.parquet")
        record = pyarrow.Table.from_pylist([RECORD])
        place = record.schema.get_field_index("none")
        record = record.set_column(place, "none", pyarrow.array([[]], pyarrow.list_(pyarrow.string())))
        parquet.write_table(record, path)
    assert read(kind=kind, path=path, field=field, target_field=target_field) == [want]


def test_pairs_of_tfds_arrive_as_bytes_and_arrays(monkeypatch):
    records = [{"en": b"a\r\nb", "de": np.array([b"A", "Ä".encode()], object)}]
    monkeypatch.setattr("lm.data.reading.tfds.Tfds._find_builder", lambda self: None)
    monkeypatch.setattr("lm.data.reading.tfds.Tfds._open_split", lambda self: records)
    assert read(kind="tfds", path="set", field="en", target_field="de") == [Pair("a\nb", ("A", "Ä"))]


def test_bad_input_is_refused_with_its_position(write, tmp_path):
    two, three, empty = write("two", "1\n2"), write("three", "1\n2\n3\n"), write("empty", "")
    jsonl = write("a.jsonl", json.dumps(RECORD))
    bad_gzip = write("bad.gz", b"no")
    cases = [
        ({"path": two, "target_path": three}, "two has 2 lines, but .*three has 3; "),
        ({"path": three, "target_path": two}, "three has 3 lines, but .*two has 2; "),
        ({"path": empty, "target_path": two}, "empty has 0 lines, but .*two has 2; "),
        ({"path": empty, "target_path": empty}, "are both empty"),
        ({"path": two, "target_path": str(tmp_path / "none")}, "none: there is no such file"),
        ({"path": bad_gzip, "target_path": two}, "bad.gz: the file is damaged or not a gzip"),
        ({"path": two, "target_path": bad_gzip}, "bad.gz: the file is damaged or not a gzip"),
        (
            {"path": two, "target_path": write("l1", b"a\n\xe9\n")},
            "l1: the text is not valid utf-8 at line 2, byte 2: 0xe9",
        ),
        ({"path": two, "pattern": "(?P<source>1)(?P<target>)"}, "two, line 2: pattern .* does not match '2'"),
        ({"path": two, "pattern": "(?P<source>.)|(?P<target>x)"}, "two, line 1: pattern"),
        ({"path": two, "pattern": "(?P<source>"}, "not a regular expression"),
        ({"path": two, "pattern": "(?P<source>.*)"}, "no group named target"),
        ({"path": two, "pattern": "1"}, "no group named source and none named target"),
        ({"path": empty, "pattern": "(?P<source>1)(?P<target>)"}, "contains no documents"),
        (
            {"kind": "jsonl", "path": jsonl, "field": "question.x"},
            "field 'question' is of type str, not a record with a field 'x'",
        ),
        (
            {"kind": "jsonl", "path": jsonl, "field": "answers.x"},
            "no field 'answers.x'; available fields in 'answers': 'text'",
        ),
        ({"kind": "jsonl", "path": jsonl, "field": "{nope} {question}"}, "line 1: there is no field 'nope'"),
        ({"kind": "jsonl", "path": jsonl, "field": "{question"}, "field '{question' is not a valid template"),
        ({"kind": "jsonl", "path": jsonl, "field": "{question!r}"}, "braces must contain a field name"),
        ({"kind": "jsonl", "path": jsonl, "field": "{}"}, "braces must contain a field name"),
        ({"kind": "jsonl", "path": jsonl, "field": "{{x}}"}, "the template contains no field name"),
        ({"kind": "jsonl", "path": jsonl, "field": "answers.start"}, "should hold text, but holds the int 0"),
        (
            {"kind": "jsonl", "path": jsonl, "field": "question", "columns": "a"},
            "columns: this setting applies only to kind=tsv",
        ),
    ]
    for options, message in cases:
        if "kind" in options:
            options["target_field"] = "context"
        with pytest.raises(UserError, match=message) as error:
            read(**options)
        assert "\n" not in str(error.value), error.value


def test_fingerprint_depends_on_everything_that_is_read(write):
    def fingerprint(**changes):
        return open_reader(dataclasses.replace(base, **changes), READERS["pairs"]).fingerprint()

    path, target = write("a.en", "a\n"), write("a.de", "A\n")
    base = SourceConfig(path=path, target_path=target, document="line")
    first = fingerprint()
    assert fingerprint(path=write("b.en", "a\n"), weight=2.0) == first, "of the content, not of the place"
    others = [fingerprint(**change) for change in ({"prefix": "x"}, {"encoding": "latin-1"}, {"path": target})]
    pattern = {"target_path": "", "pattern": "(?P<source>.)(?P<target>)"}
    others += [fingerprint(**pattern), fingerprint(**{**pattern, "pattern": "(?P<target>.)(?P<source>)"})]
    write("a.de", "B\n")
    others.append(fingerprint())
    base = SourceConfig(kind="tsv", path=write("a.tsv", "x\ty\n"), columns="x,y", field="x", target_field="y")
    others += [fingerprint(**change) for change in ({}, {"field": "y"}, {"target_field": "x"}, {"columns": "y,x"})]
    assert len({first, *others}) == 1 + len(others)


def kept(raw, cleaning=None, **options):
    chosen = PairCleaner(CleaningConfig(**(cleaning or {})), PairsConfig(**options))
    left = [pair for pair in map(chosen.clean, raw) if chosen.keeps(pair)]
    return left, {reason: count for reason, count in chosen.dropped.items() if count}


def test_both_sides_are_cleaned_and_measured():
    raw = [Pair(" a  b ", (" A ", " Ä  ")), *pairs((" ", "x"), ("x", ""), ("x", "long " * 9), ("long " * 9, "x"))]
    left, dropped = kept(raw, {"whitespace": "collapse", "max_chars": 20})
    assert left == [Pair("a b", ("A", "Ä"))]
    assert dropped == {"too_short": 2, "too_long": 2}


def test_pairs_are_dropped_by_ratio_identity_and_repetition():
    raw = pairs(("ab", "abcd"), ("abcd", "ab"), ("ab", "abcde"), ("same", "same"), ("ab", "abcd"), ("ab", "ABCD"))
    assert kept(raw) == (raw, {})
    assert kept(raw, max_ratio=2.0) == (raw[:2] + raw[3:], {"ratio": 1})
    assert kept(raw, drop_identical=True) == (raw[:3] + raw[4:], {"identical": 1})
    assert kept(raw, {"deduplicate": True}) == (raw[:4] + raw[5:], {"duplicate": 1})
    apart = pairs(("ab", "c"), ("a", "bc"))
    assert kept(apart, {"deduplicate": True}) == (apart, {}), "what is hashed knows where the source ends"


def test_script_of_most_letters_decides():
    raw = pairs(("Hi.", "嗨。"), ("你好", "嗨"), ("Привет", "Hi"), ("123!", "?"), ("abЯ", "中a"), ("ab中文", "中中b"))
    left, dropped = kept(raw, source_script="latin", target_script="CJK")
    assert left == pairs(("Hi.", "嗨。"), ("123!", "?"))  # a text without letters is kept
    assert dropped == {"source_script": 3, "target_script": 1}  # exactly half of the letters is not most
    with pytest.raises(UserError, match=r"pairs\.source_script: 'KLINGON' is not the beginning of any letter"):
        PairCleaner(CleaningConfig(), PairsConfig(source_script="KLINGON"))
