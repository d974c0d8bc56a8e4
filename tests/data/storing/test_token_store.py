"""A store contains exactly the documents' tokens, is built once, and recovers from kills and damage."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lm.data.storing import encoding, joining
from lm.data.storing.splits import text_hash
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import CharacterTokenizer, WordTokenizer
from lm.errors import UserError
from tests.conftest import ROOT
from tests.data.storing import documents

TEXTS = ["one two\n", "é", "", "three\n\nfour five"]


def build(cache, texts=TEXTS, tokenizer=None, identity="x", reads=None):
    return documents.build(cache, texts, tokenizer or ByteTokenizer(), identity, reads=reads)


def test_a_store_has_the_tokens_documents_and_counts_of_its_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 8)
    store = build(tmp_path)
    kept = [text for text in TEXTS if text]
    expected = [[1, *(b + 3 for b in text.encode()), 2] for text in kept]
    assert [store.document(i).tolist() for i in range(3)] == expected
    assert store.tokens.tolist() == [token for document in expected for token in document]
    assert store.tokens.dtype == np.uint16 and not store.tokens.flags.writeable
    assert store.manifest["counts"] == {
        "documents": 3,
        "tokens": store.num_tokens,
        "characters": sum(map(len, kept)),
        "bytes": len("".join(kept).encode()),
        "words": 2 + 1 + 1 + 3 + 2,  # "one two" and a line break, "é", three words and two line breaks
        "unknown": 0,
        "changed": 0,
    }
    assert store.manifest["dropped"]["too_short"] == 1
    assert store.hashes.tolist() == list(map(text_hash, kept)) and store.hashes.dtype == np.uint64


def test_unknown_characters_are_counted_and_large_vocabularies_fit(tmp_path):
    store = build(tmp_path, ["abz", "zz"], CharacterTokenizer("ab"))
    assert store.manifest["counts"]["unknown"] == 3 and store.manifest["counts"]["changed"] == 2
    many = CharacterTokenizer(map(chr, range(0x10000, 0x10000 + 70_000)))
    store = build(tmp_path, [chr(0x10000 + 69_999)], many, identity="large")
    assert store.tokens.dtype == np.uint32 and store.tokens.tolist() == [1, 70_003, 2]


def test_documents_that_decoding_does_not_restore_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 8)
    texts = ["one two", "one  two", "two\none", "", " one", "two"]
    store = build(tmp_path, texts, WordTokenizer(["one", "two"]))
    assert store.counts["changed"] == 3 and store.counts["unknown"] == 0
    assert store.record()["changed"] == 3


def test_a_store_is_built_once_and_reused(tmp_path):
    reads: list[int] = []
    first = build(tmp_path, reads=reads)
    again = build(tmp_path, reads=reads)
    assert len(reads) == 1 and again.fingerprint == first.fingerprint
    other = build(tmp_path, [*TEXTS, "more"], identity="y", reads=reads)
    assert len(reads) == 2 and other.fingerprint != first.fingerprint
    assert pickle.loads(pickle.dumps(first)).tokens.tolist() == first.tokens.tolist()
    assert not list(tmp_path.glob("*tmp*"))


def test_no_documents_make_an_empty_store(tmp_path):
    assert build(tmp_path, []).num_tokens == 0


@pytest.mark.parametrize("damage", ["cut", "manifest", "missing", "counts"])
def test_a_damaged_store_is_reported_and_built_again(tmp_path, capsys, damage):
    store = build(tmp_path)
    want = store.tokens.tolist()
    directory = store.directory
    if damage == "cut":
        os.truncate(directory / "tokens.bin", 4)
    elif damage == "manifest":
        (directory / "manifest.json").write_text("{")
    elif damage == "missing":
        (directory / "starts.bin").unlink()
    else:
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["counts"]["tokens"] += 1
        (directory / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert build(tmp_path).tokens.tolist() == want
    assert "is damaged" in capsys.readouterr().err


def test_an_error_while_reading_leaves_nothing(tmp_path):
    def read():
        yield "text"
        raise UserError("bad line")

    with pytest.raises(UserError, match="bad line"):
        build(tmp_path, read())
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* set config\.data\.cache_dir or LM_CACHE_DIR"):
        build(tmp_path / "file" / "cache")


BUILD_SLOWLY = """
import sys, time
from lm.data.storing import encoding
from lm.data.tokenizing.bytes import ByteTokenizer
from tests.data.storing.documents import build
encoding.CHUNK_CHARACTERS = 1
def read():
    for text in ("one two\\n", "é", "three\\n\\nfour five"):
        yield text
        print("building", flush=True)
        time.sleep(30)
build(sys.argv[1], read(), ByteTokenizer())
"""


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", BUILD_SLOWLY, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        child.stdout.readline()  # the first document has been tokenised
        assert list(tmp_path.glob("*.tmp-*")), "it is in the middle"
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert list(tmp_path.glob("*.tmp-*"))
    started = time.monotonic()
    assert build(tmp_path).num_documents == 3
    assert time.monotonic() - started < 5, "the dead builder's lock is free"
    assert not list(tmp_path.glob("*.tmp-*"))


def _build_in_child(cache, results):
    reads: list[int] = []
    store = build(cache, [f"document {i}" for i in range(2000)], reads=reads)
    results.put((len(reads), store.fingerprint))


def test_builders_at_the_same_time_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_build_in_child, args=(tmp_path, results)) for _ in range(4)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sum(reads for reads, _ in found) == 1
    assert len({fingerprint for _, fingerprint in found}) == 1
