"""Labelled data is read exactly and in order; bad data is refused, and the error names its position."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.inputs import QuestionInput, given_text, input_source
from lm.data.reading.readers import READERS, Labelled, Question, Tagged
from lm.errors import UserError


def source(wants="labels", **options):
    return open_reader(SourceConfig(**options), READERS[wants])


def read(wants="labels", **options):
    return list(source(wants, **options).iterate())


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(tmp_path, *records):
    pyarrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    library.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return str(path)


def tfds(monkeypatch, *records):
    monkeypatch.setattr("lm.data.reading.tfds.Tfds._find_builder", lambda self: None)
    monkeypatch.setattr("lm.data.reading.tfds.Tfds._open_split", lambda self: list(records))
    return "set"


def test_labels_of_any_type_become_text(write, tmp_path, monkeypatch):
    values = [1, -1, "two", " x ", 2.5]
    path = write("a.jsonl", lines(*({"text": "t", "label": value} for value in values)))
    found = read(kind="jsonl", path=path, label_field="label")
    assert [each.label for each in found] == ["1", "-1", "two", "x", "2.5"]
    assert all(each.text == "t" and each.pair is None for each in found)
    path = write("b.jsonl", lines({"text": "t", "label": True}, {"text": "t", "label": False}))
    assert [each.label for each in read(kind="jsonl", path=path, label_field="label")] == ["true", "false"]
    arrays = [np.int64(1), b"two", np.float32(3.8), np.array(4)]
    path = tfds(monkeypatch, *({"text": b"t\r\n", "label": value} for value in arrays))
    found = read(kind="tfds", path=path, label_field="label")
    assert [each.label for each in found] == ["1", "two", "3.8", "4"] and found[0].text == "t\n"
    path = parquet(tmp_path, {"text": "t", "label": 0.0}, {"text": "u", "label": 1.0})
    assert [each.label for each in read(kind="parquet", path=path, label_field="label")] == ["0", "1"]


def test_labels_may_be_numbers_of_label_names_or_names(write, monkeypatch):
    options = {"label_field": "label", "label_names": ("no", "yes")}
    path = write("a.tsv", "text\tlabel\na\t1\nb\t0\nc\tyes\n")
    assert read(kind="tsv", path=path, **options) == [
        Labelled("a", None, "yes"),
        Labelled("b", None, "no"),
        Labelled("c", None, "yes"),
    ]
    path = write("a.jsonl", lines({"text": "a", "label": True}, {"text": "b", "label": 1.0}))
    assert [each.label for each in read(kind="jsonl", path=path, **options)] == ["yes", "yes"]
    for value, message in ((2, "line 1: label 2 has no name"), (-1, "label -1 has no name"), ("maybe", "nor one of")):
        path = write("b.jsonl", lines({"text": "a", "label": value}))
        with pytest.raises(UserError, match=message):
            read(kind="jsonl", path=path, **options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "line 1: field 'label' holds no label"),
        (" ", "holds no label"),
        (["a"], "should hold a label, but holds"),
    ],
)
def test_values_that_are_no_labels_are_refused(write, value, message):
    path = write("a.jsonl", lines({"text": "a", "label": value}))
    with pytest.raises(UserError, match=message):
        read(kind="jsonl", path=path, label_field="label")


def test_regression_refuses_labels_that_are_no_numbers(write):
    path = write("a.tsv", "a\tb\tscore\none\ttwo\t3.25\nx\ty\t-1e2\n")
    options = {"kind": "tsv", "field": "a", "pair_field": "b", "label_field": "score"}
    assert read("numbers", path=path, **options) == [Labelled("one", "two", "3.25"), Labelled("x", "y", "-1e2")]
    for bad in ("much", "nan", "inf"):
        path = write("b.tsv", f"a\tb\tscore\none\ttwo\t1\none\ttwo\t{bad}\n")
        with pytest.raises(UserError, match=f"line 3: '{bad}' is not a finite number"):
            read("numbers", path=path, **options)


def test_missing_fields_and_unfitting_settings_are_refused(write):
    path = write("a.tsv", "text\tlabel\na\t1\n")
    with pytest.raises(UserError, match=r"a\.tsv: there is no field 'stars'; .*'text', 'label'"):
        read(kind="tsv", path=path, label_field="stars")
    with pytest.raises(UserError, match="label_pattern: this setting applies only to kind=text; leave it empty"):
        source(kind="tsv", path=path, label_field="label", label_pattern="x")
    with pytest.raises(UserError, match=r"kind: tsv does not support tags; use jsonl or parquet or tfds or conll"):
        source("tags", kind="tsv", path=path, label_field="label")
    with pytest.raises(
        UserError, match=r"pair_field: this setting applies only to labels or numbers, but this task reads questions"
    ):
        source("questions", kind="jsonl", path=path, pair_field="x")
    with pytest.raises(UserError, match="label_field: this setting applies only to kind=jsonl or"):
        source(kind="text", path=path, label_pattern="(?P<label>a)", label_field="x")


def test_label_is_found_in_the_path_of_a_text_file(write, tmp_path):
    write("polarity.neg", "bad\n\n  \nworse \u2028 still\r\n")
    write("polarity.pos", "good\nb\x0bc")
    options = {"path": str(tmp_path / "polarity.*"), "document": "line", "label_pattern": r"\.(?P<label>neg|pos)$"}
    assert read(**options) == [
        Labelled("bad", None, "neg"),
        Labelled("worse \u2028 still", None, "neg"),
        Labelled("good", None, "pos"),
        Labelled("b\x0bc", None, "pos"),
    ]
    named = source(**options, label_names=("x",))
    with pytest.raises(UserError, match="label 'neg' is neither an integer nor one of label_names"):
        list(named.iterate())
    write("polarity.txt", "?")
    with pytest.raises(UserError, match=r"polarity\.txt: label_pattern .* finds no label in this path"):
        read(**options)
    for pattern, message in (("(", "not a regular expression"), ("(neg|pos)", "no group named label")):
        with pytest.raises(UserError, match=message):
            read(**options | {"label_pattern": pattern})


def test_label_is_found_in_the_name_of_a_folder(write, tmp_path):
    for name, text in (("pos/1.txt", "a\nb\n"), ("neg/1.txt", "c"), ("pos/2.txt.gz", gzip.compress(b"d\n"))):
        write(f"imdb/{name}", text)
    found = read(path=str(tmp_path / "imdb/*/*.txt*"), label_pattern="/(?P<label>pos|neg)/")
    assert found == [Labelled("c", None, "neg"), Labelled("a\nb\n", None, "pos"), Labelled("d\n", None, "pos")]


def test_bytes_that_are_not_utf8_are_refused_or_counted(write, tmp_path):
    write("a.neg", b"caf\xe9\nplain\nna\xefve\x85\n")
    write("a.pos", b"plain\n\x93quoted\x94\n")
    options = {"path": str(tmp_path / "a.*"), "document": "line", "label_pattern": r"\.(?P<label>neg|pos)$"}
    with pytest.raises(
        UserError, match=r"a\.neg: the text is not valid utf-8 at line 1, byte 3: 0xe9 .*set the source's encoding"
    ):
        read(**options)
    chosen = source(**options, encoding="windows-1252")
    texts = [each.text for each in chosen.iterate()]
    assert len(texts) == 5 and texts[0] == "café" and texts[2] == "naïve\u2026" and texts[4] == "\u201cquoted\u201d"
    assert chosen.notes() == ["3 lines with bytes above 127 are read as windows-1252 (a.neg 2, a.pos 1)"]
    write("a.neg", "café\n")
    write("a.pos", "b\n")
    plain = source(**options)
    assert len(list(plain.iterate())) == 2 and plain.notes() == []


CONLL = "-DOCSTART-\tO\n\nEU\tB-ORG\nrejects\tO\n\t\nNew York\tI-LOC\n\n\n😂\tO"


def test_conll_has_a_word_and_its_tag_per_line(write):
    want = [
        Tagged(("EU", "rejects"), ("B-ORG", "O")),
        Tagged(("New York",), ("I-LOC",)),
        Tagged(("😂",), ("O",)),
    ]
    assert read("tags", kind="conll", path=write("a.conll", CONLL)) == want
    path = write("b.conll", "-DOCSTART- -X- O\nEU  NNP B-ORG \nne\u00a0xt VB O\n-DOCSTART- -X- O\n. . O\n")
    last = [Tagged(("EU", "ne\u00a0xt"), ("B-ORG", "O")), Tagged((".",), ("O",))]
    assert read("tags", kind="conll", path=path) == last
    assert read("tags", kind="conll", path=path, label_field="3") == last
    assert [each.tags for each in read("tags", kind="conll", path=path, label_field="2")] == [("NNP", "VB"), (".",)]
    with pytest.raises(UserError, match=r"b\.conll, line 2: label_field is 4, but there are only 3 columns"):
        read("tags", kind="conll", path=path, label_field="4")
    for bad, message in (("1", "is the word column"), ("0", "is not a column"), ("-1", "is not a column")):
        with pytest.raises(UserError, match=f"label_field: '{bad}' {message}"):
            read("tags", kind="conll", path=path, label_field=bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tO\nb\n", "line 2: 'b' does not hold a word and its tag"),
        ("a\tO\nb\t\n", "line 2: .* does not hold a word and its tag"),
        ("a O\n\nb\n", "line 3: 'b' does not hold a word and its tag"),
        ("\tO\n", "line 1: .* does not hold a word and its tag"),
        ("a\tO\nb\tx\tO\n", "line 2: this line has 3 columns, but earlier lines have 2"),
        ("a x O\nb O\n", "line 2: this line has 2 columns, but earlier lines have 3"),
        ("a\tx\tO\nb\t\tO\nc\t\t\n", "line 3: .* does not hold a word and its tag"),
        ("\n \n", "contains no documents"),
    ],
)
def test_broken_conll_files_are_refused_with_the_line(write, content, message):
    with pytest.raises(UserError, match=rf"a\.conll.*{message}"):
        read("tags", kind="conll", path=write("a.conll", content))


def test_records_with_lists_of_words_and_tags(write, tmp_path, monkeypatch):
    records = [{"tokens": ["EU", "is"], "tags": [1, 0]}, {"tokens": [], "tags": []}, {"tokens": ["a"], "tags": [0]}]
    want = [Tagged(("EU", "is"), ("B", "O")), Tagged(("a",), ("O",))]
    options = {"field": "tokens", "label_field": "tags", "label_names": ("O", "B")}
    arrays = [
        {"tokens": np.array([w.encode() for w in r["tokens"]], object), "tags": np.array(r["tags"])} for r in records
    ]
    for kind, path in (
        ("jsonl", write("a.jsonl", lines(*records))),
        ("parquet", parquet(tmp_path, *records)),
        ("tfds", tfds(monkeypatch, *arrays)),
    ):
        found = source("tags", kind=kind, path=path, **options)
        assert list(found.iterate()) == want
        assert found.notes() == ["1 records without words are skipped"]
    for record, message in (
        ({"tokens": ["a"], "tags": [0, 1]}, "line 1: there are 1 words in 'tokens' but 2 tags"),
        ({"tokens": "a b", "tags": [0, 1]}, "field 'tokens' should hold a list, but holds the str"),
        ({"tokens": ["a", 1], "tags": [0, 1]}, "field 'tokens' should hold text, but holds the int"),
        ({"tokens": ["a"], "tags": [2]}, "label 2 has no name"),
    ):
        with pytest.raises(UserError, match=message):
            read("tags", kind="jsonl", path=write("b.jsonl", lines(record)), **options)
    with pytest.raises(UserError, match="label_field: name the field that holds the list of tags"):
        source("tags", kind="jsonl", path="x", field="tokens")


def squad(*paragraphs, title="A"):
    return {"version": "2.0", "data": [{"title": title, "paragraphs": list(paragraphs)}]}


def entry(identity, *answers, **more):
    return {
        "id": identity,
        "question": f"{identity}?",
        "answers": [{"text": t, "answer_start": s} for t, s in answers],
        **more,
    }


def test_squad_keeps_every_character_of_the_context(write):
    context = " e\u0301\r\n 😀 中 \ud800x"
    plausible = {"is_impossible": True, "plausible_answers": [{"text": "x", "answer_start": 0}]}
    content = squad(
        {"context": context, "qas": [entry("1", ("😀", 6), ("中", 8)), entry("2", **plausible)]},
        {"context": "b", "qas": [entry("3", ("b", 0), is_impossible=False), entry("4", ("c", 0), ("b", 7), ("", 0))]},
    )
    found = source("questions", kind="squad", path=write("a.json", json.dumps(content)))
    questions = list(found.iterate())
    assert questions[0] == Question("1", "A", "1?", context.replace("\ud800", "\ufffd"), (("😀", 6), ("中", 8)))
    assert questions[0].placed == questions[0].answers
    assert questions[1].answers == () and questions[2].placed == (("b", 0),)
    assert len(questions[3].answers) == 3 and questions[3].placed == ()
    assert found.notes_on(questions)[0].startswith(
        "3 answers do not match the context at answer_start (first: question '4')"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "the list 'data' is missing"),
        (json.dumps({"data": [{"title": "A"}]}), "article 1: .*list 'paragraphs' is missing"),
        (json.dumps(squad({"qas": []})), "article 1: .*'context' is missing"),
        (json.dumps(squad({"context": "a", "qas": [{"question": "?"}]})), "'id' is missing"),
        (
            json.dumps(squad({"context": "a", "qas": [{"id": "7", "question": "?"}]})),
            "question '7': .*list 'answers' is missing",
        ),
        (json.dumps(squad({"context": "a", "qas": [entry("7", ("a", "0"))]})), "answer_start '0' is not a char"),
        (json.dumps(squad({"context": "a", "qas": [entry("7", (5, 0))]})), "'answers.text' should hold text"),
        (json.dumps({"data": []}), "contains no documents"),
    ],
)
def test_broken_squad_files_are_refused_with_the_article_or_question(write, content, message):
    with pytest.raises(UserError, match=rf"a\.json.*{message}"):
        read("questions", kind="squad", path=write("a.json", content))


def test_records_with_questions(write, tmp_path, monkeypatch):
    records = [
        {
            "id": "1",
            "title": "A",
            "question": "q",
            "context": "a\r\nb",
            "answers": {"text": ["b"], "answer_start": [3]},
        },
        {"id": "2", "title": "A", "question": "r", "context": "ab", "answers": {"text": [], "answer_start": []}},
    ]
    want = [Question("1", "A", "q", "a\r\nb", (("b", 3),)), Question("2", "A", "r", "ab", ())]
    arrays = [
        {key: value.encode() for key, value in record.items() if key != "answers"}
        | {
            "answers": {
                "text": np.array([t.encode() for t in record["answers"]["text"]], object),
                "answer_start": np.array(record["answers"]["answer_start"], np.int32),
            }
        }
        for record in records
    ]
    paths = {
        "jsonl": write("a.jsonl", lines(*records)),
        "parquet": parquet(tmp_path, *records),
        "tfds": tfds(monkeypatch, *arrays),
    }
    for kind, path in paths.items():
        assert read("questions", kind=kind, path=path) == want
    untitled = [{key: value for key, value in record.items() if key != "title"} for record in records]
    for kind, path in (("jsonl", write("b.jsonl", lines(*untitled))), ("parquet", parquet(tmp_path, *untitled))):
        found = read("questions", kind=kind, path=path)
        assert [each.title for each in found] == ["", ""] and [each.key for each in found] == ["a\r\nb", "ab"]
    with pytest.raises(UserError, match=r"field: questions have fixed field names .*question, context, answers"):
        source("questions", kind="jsonl", path=paths["jsonl"], field="question")
    uneven = records[0] | {"answers": {"text": ["b"], "answer_start": []}}
    with pytest.raises(UserError, match="line 1: the answers have 1 texts but 0 values of answer_start"):
        read("questions", kind="jsonl", path=write("c.jsonl", lines(uneven)))


def test_fingerprints_differ_if_the_examples_do(write, tmp_path):
    path = write("a.tsv", "text\tlabel\tother\na\t1\t2\n")
    other = write("b/other.tsv", Path(path).read_text())
    first = source(kind="tsv", path=path, label_field="label").fingerprint()
    assert source(kind="tsv", path=other, label_field="label").fingerprint() == first, "wherever the file is"
    changed = [
        source(kind="tsv", path=path, label_field="other"),
        source(kind="tsv", path=path, label_field="label", label_names=("a", "b")),
        source(kind="tsv", path=path, label_field="label", pair_field="other"),
        source(kind="tsv", path=write("c.tsv", "text\tlabel\tother\na\t2\t2\n"), label_field="label"),
    ]
    assert len({first, *(each.fingerprint() for each in changed)}) == 5
    for name in ("x.pos", "y.neg"):
        write(f"one/{name}", "same")
        write(f"two/{name.replace('pos', 'new').replace('neg', 'pos').replace('new', 'neg')}", "same")
    pattern = r"\.(?P<label>neg|pos)$"
    one, two = (source(path=str(tmp_path / each / "*"), label_pattern=pattern).fingerprint() for each in ("one", "two"))
    assert one != two, "the labels are in the names"


def test_new_question_may_have_a_whole_number_as_its_id_like_a_training_question():
    config = input_source({"a": SourceConfig(kind="squad")}, QuestionInput, "jsonl", "--text", {})
    text = json.dumps({"id": 7, "question": "who?", "context": "x"})
    assert given_text(config, QuestionInput, text) == Question("7", "", "who?", "x", ())
