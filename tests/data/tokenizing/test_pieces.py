"""Long texts are encoded in pieces of bounded length, with the same tokens as in one piece."""

import gzip
import itertools
import json

import numpy as np
import pytest

from lm.config import CleaningConfig, TokenizerConfig
from lm.data.storing import encoding
from lm.data.storing.splits import text_hash
from lm.data.tokenizing import build_tokenizer, pieces
from lm.errors import UserError
from tests.data.storing import documents

TEXT = " ".join(f"The word number {i} is a word\nand 12 345 others," for i in range(300))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 200)
    monkeypatch.setattr(pieces, "SEARCHED", 100)
    monkeypatch.setattr(encoding, "PIECE", 200)


@pytest.mark.parametrize("anywhere", [False, True])
def test_pieces_are_bounded_and_make_up_the_text(anywhere):
    for text in (TEXT, "", "a", "x" * 1000, "1 2 3 " * 200, TEXT + "y" * 999, "中文" * 500 + TEXT):
        found = list(pieces.cut(text, anywhere=anywhere))
        assert "".join(found) == text
        if anywhere or text is TEXT:
            assert max(map(len, found)) <= 200


def huggingface_file(path, pre_tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = getattr(tokenizers.pre_tokenizers, pre_tokenizer)()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "bytes"},
        {"kind": "characters"},
        {"kind": "words"},
        {"kind": "sentencepiece", "vocab_size": 310},
        {"kind": "sentencepiece", "vocab_size": 350, "algorithm": "bpe"},
        {"kind": "huggingface", "path": "ByteLevel"},
        {"kind": "huggingface", "path": "Metaspace"},
        {"kind": "huggingface", "path": "Whitespace"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_pieces_have_the_tokens_of_the_whole(options, tmp_path):
    if name := options.get("path"):
        options = {**options, "path": huggingface_file(tmp_path / "tokenizer.json", name)}
    tokenizer = build_tokenizer(TokenizerConfig(**options), [TEXT])
    found = list(pieces.pieces_of(tokenizer, TEXT))
    assert list(itertools.chain(*map(tokenizer.encode, found))) == tokenizer.encode(TEXT)
    if options["kind"] != "huggingface":
        assert max(map(len, found)) <= 200
    texts = ["", TEXT, ""]
    store = documents.build(tmp_path, texts, tokenizer, cleaning=CleaningConfig(min_chars=0))
    wanted = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    assert [store.document(i).tolist() for i in range(3)] == wanted and store.tokens.dtype == np.uint16
    assert store.counts == {
        "documents": 3,
        "tokens": sum(map(len, wanted)),
        "characters": len(TEXT),
        "bytes": len(TEXT.encode()),
        "words": len(TEXT.split()) + TEXT.count("\n"),
        "unknown": sum(map(tokenizer.encode(TEXT).count, [tokenizer.unk_id])),
        "changed": sum(tokenizer.changed(texts, *tokenizer.encode_documents(texts))),
    }
    assert store.hashes.tolist() == list(map(text_hash, texts))


def test_tokenizer_file_is_opened_as_text(tmp_path):
    path = huggingface_file(tmp_path / "tokenizer.json", "ByteLevel")
    content = (tmp_path / "tokenizer.json").read_bytes()
    plain = build_tokenizer(TokenizerConfig(kind="huggingface", path=path), [])
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert build_tokenizer(TokenizerConfig(kind="huggingface", path=path), []).fingerprint == plain.fingerprint
    assert plain._content() == content and json.loads(content)
    for bad, message in [
        (content.decode().encode("utf-16"), "byte-order mark of utf-16-le, but is read as utf-8; convert it"),
        (gzip.compress(content), "is gzip data"),
        (b"[" * 100_000, "not a usable tokenizer.json"),
    ]:
        (tmp_path / "tokenizer.json").write_bytes(bad)
        with pytest.raises(UserError, match=message) as error:
            build_tokenizer(TokenizerConfig(kind="huggingface", path=path), [])
        assert len(str(error.value)) <= 500
