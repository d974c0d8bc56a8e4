"""Which texts survive encoding and decoding, for every kind of tokenizer: case, accents, white space, ligatures."""

import functools
import io

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lm.config import TokenizerConfig
from lm.data.tokenizing import TOKENIZERS, build_tokenizer, library
from lm.data.tokenizing.flat import rows_of
from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from lm.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a cat sat", "A cat sat", "a  cat sat", " a cat sat", "a cat\nsat", "cafe", "café", "ﬁsh", "fish"]
PLAIN = ["a cat sat", "cafe", "fish"]


def huggingface(normalizer, model=None, pre_tokenizer=None, decoder=None):
    """Returns a tokenizer with a token for each letter, read from its file as for data.tokenizer.path."""
    known = dict(zip(["[CLS]", "[SEP]", "[UNK]", *LETTERS, *("##" + c for c in LETTERS), "▁"], range(99), strict=False))
    inner = tokenizers.Tokenizer(model or models.WordPiece(known, unk_token="[UNK]"))
    inner.normalizer = normalizer
    inner.pre_tokenizer = pre_tokenizer or pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoder or decoders.WordPiece()
    inner.add_special_tokens(["[CLS]", "[SEP]"])
    return TOKENIZERS["huggingface"](inner.to_str().encode())


def byte_level(normalizer=None):
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    model = models.BPE({**alphabet, "[CLS]": 256, "[SEP]": 257}, [])
    return huggingface(normalizer, model, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


@functools.cache
def published(rule):
    """A SentencePiece model that normalises text, as those of T5 and mBART do."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *LETTERS] * 20),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name=rule,
        minloglevel=2,
    )
    return TOKENIZERS["sentencepiece"](model.getvalue())


def changed(tokenizer, texts=TEXTS):
    """Returns the texts that are not restored, one call for each, and checks the count of all of them together."""
    found = [text for text in texts if tokenizer.changed([text], *tokenizer.encode_documents([text]))]
    ids_N, lengths_E = tokenizer.encode_documents(texts)
    start, eos = tokenizer.start_id, tokenizer.eos_id
    assert rows_of(ids_N, lengths_E) == [[start, *ids, eos] for ids in tokenizer.encode_batch(texts)]
    assert tokenizer.changed(texts, ids_N, lengths_E).tolist() == [text in found for text in texts]
    assert found == [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text]
    return found


@pytest.mark.parametrize("kind", ["bytes", "characters", "sentencepiece"])
def test_our_own_tokenizers_restore_every_text(kind):
    more = [" ".join(f"word{number}" for number in range(200))] * 5
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind, vocab_size=302), [*TEXTS, *more])
    assert changed(tokenizer, [*TEXTS, ""]) == []


def test_words_lose_white_space_other_than_single_spaces():
    tokenizer = build_tokenizer(TokenizerConfig(kind="words"), TEXTS)
    assert changed(tokenizer) == ["a  cat sat", " a cat sat", "a cat\nsat"]


def test_words_and_line_breaks_restore_lines_of_single_spaces():
    tokenizer = build_tokenizer(TokenizerConfig(kind="words", line_breaks=True), ["b b\n", "a\n\nc\n"])
    text = "\n\na b\nb\n\n\nc a"
    assert [tokenizer.piece(token) for token in tokenizer.encode(" a b \n ")] == ["a", "b", "⏎"]
    assert changed(tokenizer, [text]) == [] and tokenizer.encode(text.replace("\n", " \n ")) == tokenizer.encode(text)
    assert len(tokenizer.encode(text)) == 5 + 6 and changed(tokenizer, ["a b\n", "", "\n", " a"]) == [" a"]
    library.build(tokenizer, Template.of_one(1, TEXT), Template.of_one(1, TEXT))  # compares the ids


def test_line_breaks_stay_in_a_vocabulary_that_lacks_more_frequent_words():
    texts = [" ".join(str(n) for n in range(999) for _ in range(3)) + "\n3 x"]
    tokenizer = build_tokenizer(TokenizerConfig(kind="words", vocab_size=300, min_count=2, line_breaks=True), texts)
    assert tokenizer.vocab_size == 300 and tokenizer.vocabulary[0] == "3"
    assert [tokenizer.piece(token) for token in tokenizer.encode("3\nx")] == ["3", "⏎", "<unk>"]
    with pytest.raises(UserError, match=r"tokenizer.line_breaks: the training text has no line breaks"):
        build_tokenizer(TokenizerConfig(kind="words", line_breaks=True), ["a b", "c"])
    with pytest.raises(UserError, match=r"min_count: no word in .* occurs 3 or more times; use at most 1"):
        build_tokenizer(TokenizerConfig(kind="words", line_breaks=True, min_count=3), ["a\n\n\n\n"])


@pytest.mark.parametrize(
    ("normalizer", "lost"),
    [
        (normalizers.Lowercase(), ["A cat sat"]),
        (normalizers.NFKC(), ["ﬁsh"]),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), ["café"]),
        (normalizers.Strip(), [" a cat sat"]),
        (normalizers.Replace(tokenizers.Regex(r"\s+"), " "), ["a  cat sat", "a cat\nsat"]),
        (None, []),
    ],
)
def test_normalizers_of_a_lossless_vocabulary_lose_what_they_replace(normalizer, lost):
    assert changed(byte_level(normalizer)) == lost


def test_bert_loses_case_accents_and_white_space():
    assert changed(huggingface(normalizers.BertNormalizer(lowercase=True))) == [
        text for text in TEXTS if text not in PLAIN
    ]


def test_lengths_are_right_if_a_model_without_bos_encodes_some_text_as_eos(monkeypatch):
    tokenizer = own("sentencepiece")
    monkeypatch.setattr(tokenizer, "_word_cache", None)
    eos, rows = tokenizer.eos_id, [[9, tokenizer.eos_id, 8], [], [7]]
    monkeypatch.setattr(tokenizer, "special_tokens", SpecialTokens(None, eos))
    monkeypatch.setattr(tokenizer, "_buffers", lambda texts: [np.array(ids, np.int32) for ids in rows])
    monkeypatch.setattr(tokenizer, "encode_batch", lambda texts: rows)
    ids_N, lengths_E = tokenizer.encode_documents(["a", "b", "c"])
    assert rows_of(ids_N, lengths_E) == [[eos, *ids, eos] for ids in rows]


def test_sentencepiece_with_nfkc_loses_ligatures_and_spaces():
    assert changed(published("nmt_nfkc")) == ["a  cat sat", " a cat sat", "a cat\nsat", "ﬁsh"]
    assert changed(published("nmt_nfkc_cf")) == ["A cat sat", "a  cat sat", " a cat sat", "a cat\nsat", "ﬁsh"]


@functools.cache
def own(kind, algorithm="unigram"):
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=320, algorithm=algorithm), [*TEXTS, *LETTERS] * 9)


UNUSUAL = st.sampled_from([*"\n\u2581\ufffd\0\ufeff\x7f\x85\xa0 aé中🎉", "<s>", "<0x41>", "</s>", " ⁇ ", "\U0010ffff"])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(UNUSUAL | st.text(max_size=4), max_size=8).map("".join), max_size=5))
def test_own_tokenizers_know_without_decoding_that_they_restore_a_text(texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for tokenizer in (own("sentencepiece"), own("sentencepiece", "bpe"), own("bytes")):
        assert changed(tokenizer, texts) == []
    changed(own("characters"), texts)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=12), max_size=5))
def test_the_count_is_that_of_decoding_text_by_text(texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for tokenizer in (byte_level(), byte_level(normalizers.NFC()), published("nmt_nfkc")):
        changed(tokenizer, texts)
