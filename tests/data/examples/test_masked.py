"""Pieces of masked text against the documents they come from: cuts, draws, pairs of texts."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import CleaningConfig
from lm.data.examples.masked import MaskedPieces, NextSentencePieces
from lm.data.examples.masking import Masking
from lm.data.reading.cleaning import Cleaner
from lm.data.storing import token_store
from lm.data.tokenizing.tokenizers import ByteTokenizer, CharacterTokenizer
from lm.errors import UserError

TOKENIZER = ByteTokenizer().with_extra_ids(1)
BOS, EOS, MASK = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.extra_id(0)
MASKING = Masking(0.15, MASK, TOKENIZER.text_ids)


class Nothing:
    """Hides nothing, so that a piece is its text."""

    def hide(self, tokens, is_text, rng):
        assert np.array_equal(is_text, (tokens != BOS) & (tokens != EOS))
        return tokens, np.zeros_like(tokens), np.zeros(len(tokens), np.float32)


def make_store(cache, texts):
    cleaner = Cleaner(CleaningConfig(min_chars=0))
    return token_store.open_or_build(cache, {"texts": texts}, "test", TOKENIZER, lambda _: iter(texts), cleaner)


def pieces_of(store, hider=MASKING, length=34, seed=0, name="a", kind=MaskedPieces):
    return kind(store, hider, length, BOS, EOS, seed, name)


def original(piece):
    """Tokens before they were hidden."""
    return np.where(piece.weights_T > 0, piece.targets_T, piece.tokens_T)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    draw = np.random.default_rng(0)
    words = ["the", "cat", "mat", "hat", "sat", "on", "said", "a", "wizard", "brewed"]
    texts = [" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(80)]
    return make_store(tmp_path_factory.mktemp("store"), ["", "x", *texts, "ab"])


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), length=st.integers(3, 12))
def test_pieces_are_the_documents_cut_and_none_crosses(tmp_path_factory, sizes, length):
    documents = [bytes(97 + (d + i) % 26 for i in range(size)).decode() for d, size in enumerate(sizes)]
    pieces = pieces_of(make_store(tmp_path_factory.getbasetemp() / "cut", documents), Nothing(), length)
    wanted = [text[i : i + length - 2] for text in documents for i in range(0, len(text), length - 2)]
    found = [pieces.make(0, i).tokens_T for i in range(len(pieces))]
    assert [tokens.tolist() for tokens in found] == [[BOS, *TOKENIZER.encode(text), EOS] for text in wanted]
    assert pieces.sizes(0).tolist() == [len(tokens) for tokens in found]


@pytest.mark.parametrize("kind", [MaskedPieces, NextSentencePieces])
def test_sizes_and_types_are_those_of_the_pieces(store, kind):
    pieces = pieces_of(store, kind=kind)
    for epoch in (0, 1, 5):
        sizes = pieces.sizes(epoch)
        assert sizes.dtype == np.int64 and sizes.max() == 34 and len(sizes) == len(pieces)
        for i in range(len(pieces)):
            piece = pieces.make(epoch, i)
            arrays = piece.tokens_T, piece.targets_T, piece.weights_T, piece.types_T
            assert {len(each) for each in arrays} == {sizes[i]}
            assert [each.dtype for each in arrays] == [np.int32, np.int32, np.float32, np.int32]
            ends = np.flatnonzero(piece.tokens_T == EOS)
            assert len(ends) == (1 if kind is MaskedPieces else 2) and ends[-1] == sizes[i] - 1
            assert piece.types_T.tolist() == [int(kind is NextSentencePieces and j > ends[0]) for j in range(sizes[i])]
            special = [0, *ends]
            assert piece.tokens_T[0] == BOS and not piece.weights_T[special].any()
            wanted = max(1, round(0.15 * (sizes[i] - len(special))))
            assert piece.weights_T.sum() == wanted
            assert (original(piece) == MASK).sum() == 0 and (piece.tokens_T == BOS).sum() == 1


@pytest.mark.parametrize("kind", [MaskedPieces, NextSentencePieces])
def test_draws_depend_on_seed_source_epoch_and_number_alone(store, kind):
    def drawn(pieces, epoch):
        return [pickle.dumps(pieces.make(epoch, i)) for i in range(len(pieces))]

    pieces = pieces_of(store, kind=kind)
    first = drawn(pieces, 0)
    long = [i for i in range(len(pieces)) if pieces.sizes(0)[i] > 30]
    assert len(long) > 100
    for other in (
        drawn(pieces, 1),
        drawn(pieces_of(store, kind=kind, name="b"), 0),
        drawn(pieces_of(store, kind=kind, seed=1), 0),
    ):
        assert sum(first[i] == other[i] for i in long) <= 1, "masks of 5 of 31 places are seldom the same"
    assert len({tuple(np.flatnonzero(pieces.make(0, i).weights_T)) for i in long}) > 0.95 * len(long)
    for epoch in range(2, 6):
        drawn(pieces, epoch)
    again = pickle.loads(pickle.dumps(pieces))
    assert drawn(pieces, 0) == first, "after other epochs"
    assert [pickle.dumps(again.make(0, i)) for i in reversed(range(len(first)))] == first[::-1], "in another process"
    assert len(pickle.dumps(again)) < 4000, "nothing of what was drawn is sent to workers"


def test_masks_are_new_in_each_epoch_and_hide_every_place_in_time(store):
    pieces = pieces_of(store)
    index = int(np.argmax(pieces.sizes(0)))
    hidden = np.array([pieces.make(epoch, index).weights_T for epoch in range(100)])
    assert len({tuple(row) for row in hidden.tolist()}) > 95
    counts = hidden.sum(axis=0)[1:-1]
    share = hidden.sum() / (100 * len(counts))
    assert np.abs(counts - 100 * share).max() < 4.5 * np.sqrt(100 * share * (1 - share))
    texts = {tuple(original(pieces.make(epoch, index)).tolist()) for epoch in range(10)}
    assert len(texts) == 1, "of the same text"


def test_words_of_documents_are_hidden_whole(store):
    masking = Masking(0.15, MASK, TOKENIZER.text_ids, TOKENIZER.word_starts)
    pieces = pieces_of(store, masking, length=203)
    hidden = texts = 0
    for i in range(len(pieces)):
        piece = pieces.make(0, i)
        text, weights = TOKENIZER.decode(original(piece)[1:-1]), piece.weights_T[1:-1]
        place = 0
        for word in text.replace(" ", "\0 ").split("\0"):  # with the space before it
            assert weights[place : place + len(word)].sum() in (0, len(word)), (text, word)
            place += len(word)
        assert place == len(text)
        if len(text) > 100:
            hidden, texts = hidden + weights.sum(), texts + len(text)
    assert texts > 5000 and 0.14 < hidden / texts < 0.155


def test_half_of_the_pairs_follow_and_the_others_are_of_other_documents(tmp_path):
    # Each document has letters of its own, each place a number: a run tells where it was taken from.
    lengths = 30 + 7 * np.arange(12)
    texts = ["".join(chr(0x4E00 + 300 * d + i) for i in range(length)) for d, length in enumerate(lengths)]
    tokenizer = CharacterTokenizer("".join(texts))
    cleaner = Cleaner(CleaningConfig(min_chars=0))
    store = token_store.open_or_build(tmp_path, {}, "test", tokenizer, lambda _: iter(texts), cleaner)
    pieces = NextSentencePieces(store, Nothing(), 24, BOS, EOS, 0, "a")
    follows = total = 0
    cuts, partners = set(), np.zeros(12)
    for epoch in range(30):
        for i in range(len(pieces)):
            piece = pieces.make(epoch, i)
            first, second, rest = np.split(piece.tokens_T, np.flatnonzero(piece.tokens_T == EOS) + 1)
            a, b = first[1:-1], second[:-1]
            assert len(rest) == 0 and min(len(a), len(b)) >= 1 and not piece.targets_T[1:].any()
            assert not piece.weights_T.any()
            code_a, code_b = (np.array([ord(c) - 0x4E00 for c in tokenizer.decode(x)]) for x in (a, b))
            assert (np.diff(code_a) == 1).all() and (np.diff(code_b) == 1).all(), "a run of one document"
            document_a, document_b = ({int(c) // 300 for c in code} for code in (code_a, code_b))
            assert len(document_a) == len(document_b) == 1
            label = int(piece.targets_T[0])
            assert label in (0, 1)
            if label:
                assert document_a == document_b and code_b[0] == code_a[-1] + 1
                cuts.add(len(a))
            else:
                assert document_a != document_b
                partners[document_b.pop()] += 1
            follows, total = follows + label, total + 1
    assert abs(follows / total - 0.5) < 4 * np.sqrt(0.25 / total) and total > 1000
    assert cuts == set(range(1, 21)), "any place of a chunk of 21"
    # Of a piece of document e the partner is d with probability length_d / (length of all but e).
    chunks = -(-lengths // 21)
    chances = [
        sum(chunks[e] * lengths[d] / (lengths.sum() - lengths[e]) for e in range(12) if e != d) for d in range(12)
    ]
    wanted = partners.sum() * np.array(chances) / chunks.sum()
    assert np.sum((partners - wanted) ** 2 / wanted) < 30, "chi-squared with 11 degrees of freedom"


def test_a_short_partner_is_taken_whole(tmp_path):
    store = make_store(tmp_path, ["abcdefghij", "XY"])
    pieces = pieces_of(store, Nothing(), length=20, kind=NextSentencePieces)
    seen = set()
    for epoch in range(200):
        tokens = pieces.make(epoch, 0).tokens_T
        a, b = (TOKENIZER.decode(part) for part in np.split(tokens, np.flatnonzero(tokens == EOS)[:1]))
        assert a + b == "abcdefghij" or b == "XY" or (b in "XY" and len(a) == 9)
        assert pieces.sizes(epoch)[0] == len(tokens) <= 13
        seen.add((a, b))
    assert len(seen) == 9 + 9 + 1, "every cut, either way; of a partner of one token both"


def test_one_document_alone_has_no_other_text(tmp_path):
    with pytest.raises(UserError, match="source mine has one document only"):
        pieces_of(make_store(tmp_path, ["", "one document", ""]), name="mine", kind=NextSentencePieces)
    assert len(pieces_of(make_store(tmp_path, ["", ""]), kind=NextSentencePieces)) == 0


def test_rows_too_short_for_any_text_are_told(store):
    with pytest.raises(UserError, match=r"config.data.sequence_length: 2 tokens a row"):
        len(pieces_of(store, length=2))


def test_masked_text_has_no_bytes_of_its_own(store):
    pieces = pieces_of(store)
    assert pieces.text == {"documents": 83, "bytes": 0, "words": 0, "unknown": 0} and pieces.missing
