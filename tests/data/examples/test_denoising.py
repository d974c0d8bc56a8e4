"""Denoising examples compared with their documents: sizes, cuts, random draws."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.examples.denoising import DenoisingExamples, Infilling, PrefixLm, SpanCorruption
from lm.data.tokenizing.bytes import ByteTokenizer
from tests.data.examples.stores import make_store

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
SENTINELS = list(range(400, 300, -1))


class Whole:
    """A denoiser that leaves chunks of at most `longest` tokens unchanged."""

    def __init__(self, longest):
        self.longest = longest

    def longest_chunk(self, source_length, target_length):
        return self.longest

    def draw(self, lengths, rng):
        return rng.random((len(lengths), 1))

    def sizes(self, lengths, draws):
        return lengths + 1, lengths + 1

    def make(self, tokens, draws, rng):
        return np.append(tokens, EOS), np.array([int(draws[0] * 1e6), int(rng.integers(10**6)), EOS])


def denoising(store, denoiser, name="a", seed=0, lengths=(64, 64)):
    return DenoisingExamples(store, denoiser, lengths, TOKENIZER.special_tokens, seed, name)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), longest=st.integers(2, 9))
def test_chunks_are_the_documents_cut_and_none_crosses(tmp_path_factory, sizes, longest):
    documents = [bytes(97 + (d + i) % 26 for i in range(size)).decode() for d, size in enumerate(sizes)]
    store = make_store(tmp_path_factory.getbasetemp() / "chunks", documents, TOKENIZER)
    examples = denoising(store, Whole(longest))
    chunks = [TOKENIZER.decode(examples.make(0, i).source_S) for i in range(len(examples))]
    assert all(2 <= len(each) <= longest for each in chunks)
    assert (examples.sizes(0)[1] == np.array([len(each) for each in chunks], int) + 1).all()
    for text in documents:
        if len(text) < 2:
            continue
        cut = [chunks.pop(0) for _ in range(-(-len(text) // longest) - (longest == 2 and len(text) % 2))]
        # Chunks of two tokens have none to spare for a single token at the end, which is then left out.
        assert "".join(cut) == text[: len(text) - (longest == 2 and len(text) % 2)]
        assert all(len(each) == longest for each in cut[:-2]), "only the end of a document is cut short"
    assert chunks == []


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), [f"document {i} " * (i % 7) for i in range(60)], TOKENIZER)


@pytest.mark.parametrize(
    "denoiser",
    [SpanCorruption(0.15, 3.0, SENTINELS, EOS), Infilling(0.3, 3.0, SENTINELS[0], EOS), PrefixLm(EOS)],
    ids=["span_corruption", "infilling", "prefix_lm"],
)
def test_sizes_are_known_before_the_examples_are_made(store, denoiser):
    examples = denoising(store, denoiser)
    for epoch in (0, 1, 5):
        target_sizes, source_sizes = examples.sizes(epoch)
        assert len(source_sizes) == len(target_sizes) == len(examples)
        for i in range(len(examples)):
            example = examples.make(epoch, i)
            assert (len(example.source_S), len(example.targets_T)) == (source_sizes[i], target_sizes[i])
            assert example.tokens_T.tolist() == [BOS, *example.targets_T[:-1]] and (example.weights_T == 1).all()
            assert example.source_S[-1] == example.targets_T[-1] == EOS
        assert max(size.max() for size in examples.sizes(epoch)) <= 64
    assert examples.num_targets() == examples.sizes(0)[0].sum()


def drawn(examples, epoch):
    return [tuple(examples.make(epoch, i).targets_T.tolist()) for i in range(len(examples))]


def test_draws_depend_only_on_seed_source_epoch_and_number(store):
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
    backwards = [tuple(again.make(0, i).targets_T.tolist()) for i in reversed(range(len(first)))]
    assert list(reversed(backwards)) == first


def test_masks_differ_between_epochs(store):
    examples = denoising(store, SpanCorruption(0.15, 3.0, SENTINELS, EOS))
    long = [i for i in range(len(examples)) if examples.sizes(0)[1][i] > 40]
    same = sum(np.array_equal(examples.make(0, i).source_S, examples.make(1, i).source_S) for i in long)
    assert len(long) > 20 and same <= 1  # with 41 or more tokens, there are about 10,000 possible masks


def test_the_targets_of_denoising_have_no_bytes_of_their_own(store):
    examples = denoising(store, PrefixLm(EOS))
    assert examples.text == {"documents": 60, "bytes": 0, "words": 0, "unknown": 0}
