"""Masked examples compared with their documents: cuts, random draws, pairs of texts."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.masked import MaskedExamples, Masking, NextSentenceExamples
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import CharacterTokenizer
from lm.errors import UserError
from tests.data.examples.stores import make_store

TOKENIZER = ByteTokenizer().with_extra_ids(1)
BOS, EOS, MASK = TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.extra_id(0)
MASKING = Masking(0.15, MASK, TOKENIZER.text_ids)


class Nothing:
    """Masks nothing, so that an example is its text."""

    whole_words = True

    def mask(self, tokens, is_text, rng):
        assert np.array_equal(is_text, (tokens != BOS) & (tokens != EOS))
        return tokens, np.zeros_like(tokens), np.zeros(len(tokens), np.float32)


def examples_of(store, masking=MASKING, length=34, seed=0, name="a", kind=MaskedExamples):
    return kind(store, masking, length, TOKENIZER.special_tokens, seed, name)


def original(example):
    """Returns the tokens as they were before masking."""
    return np.where(example.weights_T > 0, example.targets_T, example.tokens_T)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    draw = np.random.default_rng(0)
    words = ["the", "cat", "mat", "hat", "sat", "on", "said", "a", "wizard", "brewed"]
    texts = [" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(80)]
    return make_store(tmp_path_factory.mktemp("store"), ["", "x", *texts, "ab"], TOKENIZER)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), length=st.integers(3, 12))
def test_examples_are_the_documents_cut_and_none_crosses(tmp_path_factory, sizes, length):
    documents = [bytes(97 + (d + i) % 26 for i in range(size)).decode() for d, size in enumerate(sizes)]
    examples = examples_of(make_store(tmp_path_factory.getbasetemp() / "cut", documents, TOKENIZER), Nothing(), length)
    wanted = [text[i : i + length - 2] for text in documents for i in range(0, len(text), length - 2)]
    found = [examples.make(0, i).tokens_T for i in range(len(examples))]
    assert [tokens.tolist() for tokens in found] == [[BOS, *TOKENIZER.encode(text), EOS] for text in wanted]
    (sizes,) = examples.sizes(0)
    assert sizes.tolist() == [len(tokens) for tokens in found]


@pytest.mark.parametrize("kind", [MaskedExamples, NextSentenceExamples])
def test_sizes_and_types_are_those_of_the_examples(store, kind):
    words = Masking(0.15, MASK, TOKENIZER.text_ids, TOKENIZER.word_starts)
    examples, whole_words = examples_of(store, kind=kind), examples_of(store, words, kind=kind)
    for epoch in (0, 1, 5):
        (sizes, masked), (same,) = examples.sizes(epoch), whole_words.sizes(epoch)
        assert np.array_equal(same, sizes)
        assert sizes.dtype == np.int64 and sizes.max() == 34 and len(sizes) == len(examples)
        for i in range(len(examples)):
            example = examples.make(epoch, i)
            arrays = example.tokens_T, example.targets_T, example.weights_T, example.types_T
            assert {len(each) for each in arrays} == {sizes[i]}
            assert [each.dtype for each in arrays] == [np.int32, np.int32, np.float32, np.int32]
            ends = np.flatnonzero(example.tokens_T == EOS)
            assert len(ends) == (1 if kind is MaskedExamples else 2) and ends[-1] == sizes[i] - 1
            assert example.types_T.tolist() == [
                int(kind is NextSentenceExamples and j > ends[0]) for j in range(sizes[i])
            ]
            special = [0, *ends]
            assert example.tokens_T[0] == BOS and not example.weights_T[special].any()
            wanted = max(1, round(0.15 * (sizes[i] - len(special))))
            assert example.weights_T.sum() == wanted == masked[i]
            assert (original(example) == MASK).sum() == 0 and (example.tokens_T == BOS).sum() == 1


@pytest.mark.parametrize("kind", [MaskedExamples, NextSentenceExamples])
def test_draws_depend_only_on_seed_source_epoch_and_number(store, kind):
    def drawn(examples, epoch):
        return [pickle.dumps(examples.make(epoch, i)) for i in range(len(examples))]

    examples = examples_of(store, kind=kind)
    first = drawn(examples, 0)
    long = [i for i in range(len(examples)) if examples.sizes(0)[0][i] > 30]
    assert len(long) > 100
    for other in (
        drawn(examples, 1),
        drawn(examples_of(store, kind=kind, name="b"), 0),
        drawn(examples_of(store, kind=kind, seed=1), 0),
    ):
        assert sum(first[i] == other[i] for i in long) <= 1, "masks of 5 of 31 tokens are seldom the same"
    assert len({tuple(np.flatnonzero(examples.make(0, i).weights_T)) for i in long}) > 0.95 * len(long)
    for epoch in range(2, 6):
        drawn(examples, epoch)
    again = pickle.loads(pickle.dumps(examples))
    assert drawn(examples, 0) == first, "after other epochs"
    assert [pickle.dumps(again.make(0, i)) for i in reversed(range(len(first)))] == first[::-1], "in another process"
    assert len(pickle.dumps(again)) < 4000, "nothing of what was drawn is sent to workers"


def test_masks_are_new_in_each_epoch_and_reach_every_token_in_time(store):
    examples = examples_of(store)
    index = int(np.argmax(examples.sizes(0)[0]))
    masked = np.array([examples.make(epoch, index).weights_T for epoch in range(100)])
    assert len({tuple(row) for row in masked.tolist()}) > 95
    counts = masked.sum(axis=0)[1:-1]
    share = masked.sum() / (100 * len(counts))
    assert np.abs(counts - 100 * share).max() < 4.5 * np.sqrt(100 * share * (1 - share))
    texts = {tuple(original(examples.make(epoch, index)).tolist()) for epoch in range(10)}
    assert len(texts) == 1, "the text is the same"


def test_whole_words_of_documents_are_masked(store):
    masking = Masking(0.15, MASK, TOKENIZER.text_ids, TOKENIZER.word_starts)
    examples = examples_of(store, masking, length=203)
    masked = texts = 0
    for i in range(len(examples)):
        example = examples.make(0, i)
        text, weights = TOKENIZER.decode(original(example)[1:-1]), example.weights_T[1:-1]
        begin = 0
        for word in text.replace(" ", "\0 ").split("\0"):  # including the space before it
            assert weights[begin : begin + len(word)].sum() in (0, len(word)), (text, word)
            begin += len(word)
        assert begin == len(text)
        if len(text) > 100:
            masked, texts = masked + weights.sum(), texts + len(text)
    assert texts > 5000 and 0.14 < masked / texts < 0.155


def test_in_half_of_the_pairs_the_second_text_follows_and_in_the_others_it_is_of_another_document(tmp_path):
    # Each document has its own letters, in order, so a run of letters shows where it comes from.
    lengths = 30 + 7 * np.arange(12)
    texts = ["".join(chr(0x4E00 + 300 * d + i) for i in range(length)) for d, length in enumerate(lengths)]
    tokenizer = CharacterTokenizer("".join(texts))
    examples = examples_of(make_store(tmp_path, texts, tokenizer), Nothing(), 24, kind=NextSentenceExamples)
    follows = total = 0
    cuts, seconds = set(), np.zeros(12)
    for epoch in range(30):
        for i in range(len(examples)):
            example = examples.make(epoch, i)
            first, second, rest = np.split(example.tokens_T, np.flatnonzero(example.tokens_T == EOS) + 1)
            a, b = first[1:-1], second[:-1]
            assert len(rest) == 0 and min(len(a), len(b)) >= 1 and not example.targets_T[1:].any()
            assert not example.weights_T.any()
            code_a, code_b = (np.array([ord(c) - 0x4E00 for c in tokenizer.decode(x)]) for x in (a, b))
            assert (np.diff(code_a) == 1).all() and (np.diff(code_b) == 1).all(), "a run of one document"
            document_a, document_b = ({int(c) // 300 for c in code} for code in (code_a, code_b))
            assert len(document_a) == len(document_b) == 1
            label = int(example.targets_T[0])
            assert label in (0, 1)
            if label:
                assert document_a == document_b and code_b[0] == code_a[-1] + 1
                cuts.add(len(a))
            else:
                assert document_a != document_b
                seconds[document_b.pop()] += 1
            follows, total = follows + label, total + 1
    assert abs(follows / total - 0.5) < 4 * np.sqrt(0.25 / total) and total > 1000
    assert cuts == set(range(1, 21)), "a chunk of 21 is cut anywhere"
    # The second text of an example of document e is from d with probability length_d / (total length except e).
    chunks = -(-lengths // 21)
    chances = [
        sum(chunks[e] * lengths[d] / (lengths.sum() - lengths[e]) for e in range(12) if e != d) for d in range(12)
    ]
    wanted = seconds.sum() * np.array(chances) / chunks.sum()
    assert np.sum((seconds - wanted) ** 2 / wanted) < 30, "chi-squared with 11 degrees of freedom"


def test_all_of_a_short_document_becomes_the_second_text(tmp_path):
    store = make_store(tmp_path, ["abcdefghij", "XY"], TOKENIZER)
    examples = examples_of(store, Nothing(), length=20, kind=NextSentenceExamples)
    seen = set()
    for epoch in range(200):
        tokens = examples.make(epoch, 0).tokens_T
        a, b = (TOKENIZER.decode(part) for part in np.split(tokens, np.flatnonzero(tokens == EOS)[:1]))
        assert a + b == "abcdefghij" or b == "XY" or (b in "XY" and len(a) == 9)
        assert examples.sizes(epoch)[0][0] == len(tokens) <= 13
        seen.add((a, b))
    assert len(seen) == 9 + 9 + 1, "every cut, with either second text; both letters if it has one token"


def test_next_sentences_need_a_second_document(tmp_path):
    with pytest.raises(UserError, match="source mine has only one document"):
        examples_of(make_store(tmp_path, ["", "one document", ""], TOKENIZER), name="mine", kind=NextSentenceExamples)
    assert len(examples_of(make_store(tmp_path, ["", ""], TOKENIZER), kind=NextSentenceExamples)) == 0


def test_rows_too_short_for_any_text_are_refused(store):
    with pytest.raises(UserError, match=r"config.data.sequence_length: rows of 2 tokens"):
        len(examples_of(store, length=2))


def test_masked_text_has_no_bytes_of_its_own(store):
    examples = examples_of(store)
    assert examples.text == {"documents": 83, "bytes": 0, "words": 0, "unknown": 0}
