"""Data that train.py refuses: damaged or unsuitable data files, pairs, patterns and tokenizer files."""

import gzip

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


JSONL = '{"text": "one"}\n{"text": "two"\n{"text": "three"}\n'


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("absent.txt", None, {}, "absent.txt: there is no such file"),
        ("*.text", None, {}, "no file matches this pattern"),
        ("", None, {}, "is a directory"),
        ("empty.txt", b"", {}, "contains no documents"),
        ("latin.txt", "one\ncaf\xe9\n".encode("latin-1"), {}, "the text is not valid utf-8 at line 2, byte 7"),
        ("text.txt", b"one\n", {"encoding": "utf-9"}, "encoding 'utf-9' is unknown"),
        ("short.txt", b"one\ntwo\nthree\nfour\nfive\nsix\n", {}, "one row needs 33"),
        ("single.txt", b"one line\n" * 100, {}, "no documents of text"),
        ("cut.txt.gz", gzip.compress(b"one\n" * 1000, mtime=0)[:-10], {}, "the file is damaged or not a gzip file"),
        ("a.jsonl", JSONL.encode(), {"kind": "jsonl"}, "a.jsonl, line 2: this is not valid JSON"),
        ("a.jsonl", b'{"body": "one"}\n', {"kind": "jsonl"}, "there is no field 'text'; available fields: 'body'"),
        ("a.jsonl", b'{"text": 1}\n', {"kind": "jsonl"}, "should hold text"),
        ("a.tsv", b"id\tbody\n1\tone\n", {"kind": "tsv"}, "there is no field 'text'; available fields: 'id', 'body'"),
        ("a.tsv", b"id\ttext\n1\n", {"kind": "tsv"}, "a.tsv, line 2: this row has 1 fields"),
        ("a.parquet", b"PAR1 not really", {"kind": "parquet"}, "a.parquet is not a readable Parquet file"),
    ],
)
def test_bad_data_files_are_refused(refused, tiny, tmp_path, name, content, changes, message):
    folder = tmp_path / "data"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content)
    overrides = [f"--config.data.train.text.{key}={value}" for key, value in changes.items()]
    flags = [f"--config={tiny.config}:{folder / name}", f"--workdir={tmp_path / 'run'}", *overrides]
    refused(message, "train.py", *flags, keeping=folder)


LINES = b"one two\nthree four\nfive six\nseven eight\nnine ten\neleven twelve\n"


@pytest.mark.parametrize(
    ("source", "target", "changes", "message"),
    [
        (LINES, LINES[:-14], {}, "text.source has 6 lines, but "),
        (LINES, LINES + b"one more\n", {}, "text.target has 7; line i of one is paired with line i of the other"),
        (LINES, None, {}, "text.target: there is no such file"),
        (LINES, b"", {}, "text.source has 6 lines, but "),
        (b"", b"", {}, "are both empty"),
        (LINES, b"one\ncaf\xe9\n", {}, "text.target: the text is not valid utf-8 at line 2"),
        (LINES, LINES, {"data__pairs__drop_identical": True}, "config.data.train: no pairs of reversal"),
        (LINES, LINES, {"data__holdout_fraction": 1e-9}, "are held out for validation; there are too few"),
        (LINES, LINES, {"data__pairs__target_script": "KLINGON"}, "config.data.pairs.target_script: 'KLINGON'"),
        (LINES, LINES, {"data__pairs__overlong": "drop", "data__source_length": 4}, "every pair is longer than a row"),
        (
            LINES,
            LINES,
            {"data__separate_vocabularies": True, "model__share_embeddings": False},
            "config.data.separate_vocabularies: the tokenizer of each side is trained on the text of that side",
        ),
    ],
)
def test_bad_files_of_pairs_are_refused(refused, tiny_pairs, tmp_path, source, target, changes, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for side, content in (("source", source), ("target", target)):
        if content is not None:
            (folder / f"text.{side}").write_bytes(content)
    _, *overrides = tiny_pairs.flags(tmp_path / "run", **{"data__holdout_fraction": 0.3, **changes})
    refused(message, "train.py", f"--config={tiny_pairs.config}:{folder / 'text.source'}", *overrides, keeping=folder)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<source>.*", "config.data.train.reversal.pattern: '(?P<source>.*' is not a regular expression"),
        ("(?P<source>.*) => (.*)", "' has no group named target"),
        ("IN: (?P<source>.*) OUT: (?P<target>.*)", "text.source, line 1: pattern"),
    ],
)
def test_bad_patterns_of_pairs_are_refused(refused, tiny_pairs, tmp_path, pattern, message):
    changes = {"data__train__reversal__target_path": "", "data__train__reversal__pattern": pattern}
    refused(message, "train.py", *tiny_pairs.flags(tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("huggingface", b'{"model": ', "not a usable tokenizer.json"),
        ("huggingface", None, "there is no file"),
        ("sentencepiece", b"not a model", "not a usable SentencePiece model"),
    ],
)
def test_bad_tokenizer_files_are_refused(refused, tiny, tmp_path, kind, content, message):
    path = tmp_path / "tokenizer.file"
    if content is not None:
        path.write_bytes(content)
    changes = {"data__tokenizer__kind": kind, "data__tokenizer__path": path}
    refused(message, "train.py", *tiny.flags(tmp_path / "run", **changes))
