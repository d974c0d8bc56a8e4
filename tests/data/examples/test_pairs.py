"""Examples against the documents they come from: sizes, cuts, what is dropped, what is drawn."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import CleaningConfig
from lm.data.examples.corruption import Infilling, PrefixLm, SpanCorruption
from lm.data.examples.pairs import DenoisingExamples, PairExamples
from lm.data.reading.cleaning import Cleaner
from lm.data.storing import token_store
from lm.data.storing.pair_store import PairStore
from lm.data.tokenizing.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_id
SENTINELS = list(range(400, 300, -1))


def make_store(cache, texts):
    cleaner = Cleaner(CleaningConfig(min_chars=0))
    return token_store.open_or_build(cache, {"texts": texts}, "test", TOKENIZER, lambda _: iter(texts), cleaner)


def make_pairs(cache, pairs):
    return PairStore(*(make_store(cache, [pair[side] for pair in pairs]) for side in (0, 1)))


PAIRS = [("ab", "xyz"), ("", "w"), ("abcdefgh", "v"), ("abc", "uvwxyz"), ("k", ""), ("abcd", "rst")]


def texts(example):
    assert all(tokens[-1] == EOS and tokens.dtype == np.int32 for tokens in example)
    return tuple(TOKENIZER.decode(tokens[:-1]) for tokens in example)


def check_sizes(examples, epoch=0):
    source_sizes, target_sizes = examples.sizes(epoch)
    assert len(source_sizes) == len(target_sizes) == len(examples)
    for i in range(len(examples)):
        source, target = examples.make(epoch, i)
        assert (len(source), len(target)) == (source_sizes[i], target_sizes[i])


def test_pairs_are_text_and_end_token(tmp_path):
    examples = PairExamples(make_pairs(tmp_path, PAIRS), 20, 20)
    assert [texts(examples.make(3, i)) for i in range(len(examples))] == PAIRS
    check_sizes(examples)
    assert examples.missing == ""
    assert examples.text == {"documents": 6, "bytes": 14, "words": 5, "unknown": 0}


def test_long_pairs_are_cut_before_the_end_token(tmp_path):
    examples = PairExamples(make_pairs(tmp_path, PAIRS), 5, 4)
    cut = [(source[:4], target[:3]) for source, target in PAIRS]
    assert [texts(examples.make(0, i)) for i in range(len(examples))] == cut
    check_sizes(examples)
    assert examples.missing.startswith("truncated") and examples.text["bytes"] == examples.text["words"] == 0
    # Of a cut source the whole target is scored still.
    assert PairExamples(make_pairs(tmp_path, PAIRS), 5, 7).text["bytes"] == 14


def test_long_pairs_are_dropped_if_asked(tmp_path):
    examples = PairExamples(make_pairs(tmp_path, PAIRS), 5, 4, overlong="drop")
    kept = [pair for pair in PAIRS if len(pair[0]) < 5 and len(pair[1]) < 4]
    assert [texts(examples.make(0, i)) for i in range(len(examples))] == kept and 0 < len(kept) < len(PAIRS)
    check_sizes(examples)
    again = pickle.loads(pickle.dumps(examples))
    assert texts(again.make(0, 2)) == kept[2]


class Whole:
    """A denoiser that changes nothing, for chunks of at most `longest` tokens."""

    def __init__(self, longest):
        self.longest = longest

    def longest_chunk(self, source_length, target_length):
        return self.longest

    def draw(self, lengths, rng):
        return rng.random((len(lengths), 1))

    def sizes(self, lengths, draws):
        return lengths + 1, lengths + 1

    def make(self, tokens, draws, rng):
        return tokens, np.array([int(draws[0] * 1e6), int(rng.integers(10**6))])


def denoising(store, denoiser, name="a", seed=0, lengths=(64, 64)):
    return DenoisingExamples(store, denoiser, *lengths, seed, name)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), longest=st.integers(2, 9))
def test_chunks_are_the_documents_cut_and_none_crosses(tmp_path_factory, sizes, longest):
    documents = [bytes(97 + (d + i) % 26 for i in range(size)).decode() for d, size in enumerate(sizes)]
    examples = denoising(make_store(tmp_path_factory.getbasetemp() / "chunks", documents), Whole(longest))
    chunks = [TOKENIZER.decode(examples.make(0, i)[0]) for i in range(len(examples))]
    assert all(2 <= len(each) <= longest for each in chunks)
    assert (examples.sizes(0)[0] == np.array([len(each) for each in chunks], int) + 1).all()
    for text in documents:
        if len(text) < 2:
            continue
        parts = [chunks.pop(0) for _ in range(-(-len(text) // longest) - (longest == 2 and len(text) % 2))]
        # Only where chunks have but two tokens can a last odd one not be helped.
        assert "".join(parts) == text[: len(text) - (longest == 2 and len(text) % 2)]
        assert all(len(part) == longest for part in parts[:-2]), "only the end of a document is cut short"
    assert chunks == []


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, [f"document {i} " * (i % 7) for i in range(60)])


@pytest.mark.parametrize(
    "denoiser",
    [SpanCorruption(0.15, 3.0, SENTINELS, EOS), Infilling(0.3, 3.0, SENTINELS[0], EOS), PrefixLm(EOS)],
    ids=["span_corruption", "infilling", "prefix_lm"],
)
def test_sizes_are_known_before_the_examples_are_made(store, denoiser):
    examples = denoising(store, denoiser)
    for epoch in (0, 1, 5):
        check_sizes(examples, epoch)
        assert max(size.max() for size in examples.sizes(epoch)) <= 64


def drawn(examples, epoch):
    return [tuple(examples.make(epoch, i)[1].tolist()) for i in range(len(examples))]


def test_draws_depend_on_seed_source_epoch_and_number_alone(store):
    examples = denoising(store, Whole(10))
    first = drawn(examples, 0)
    others = [drawn(examples, 1), drawn(denoising(store, Whole(10), name="b"), 0)]
    others.append(drawn(denoising(store, Whole(10), seed=1), 0))
    for other in others:
        assert not any(a[0] == b[0] or a[1] == b[1] for a, b in zip(first, other, strict=True))
    assert len({each[1] for each in first}) > 0.99 * len(first)
    for epoch in range(2, 6):
        drawn(examples, epoch)
    assert drawn(examples, 0) == first, "after other epochs"
    again = pickle.loads(pickle.dumps(examples))
    assert list(reversed([tuple(again.make(0, i)[1].tolist()) for i in reversed(range(len(first)))])) == first


def test_masks_differ_between_epochs(store):
    examples = denoising(store, SpanCorruption(0.15, 3.0, SENTINELS, EOS))
    long = [i for i in range(len(examples)) if examples.sizes(0)[0][i] > 40]
    same = sum(np.array_equal(examples.make(0, i)[0], examples.make(1, i)[0]) for i in long)
    assert len(long) > 20 and same <= 1  # of 41 tokens and more there are some 10,000 masks


def test_the_targets_of_denoising_have_no_bytes_of_their_own(store):
    examples = denoising(store, PrefixLm(EOS))
    assert examples.text == {"documents": 60, "bytes": 0, "words": 0, "unknown": 0} and examples.missing
