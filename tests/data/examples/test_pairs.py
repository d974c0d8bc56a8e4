"""Examples of pairs compared with the raw pairs: sizes, cuts, drops."""

import pickle

import numpy as np
import pytest

from lm.data.examples.pairs import PairedTexts, PairExamples
from lm.data.packing.rows import EvalRows, RowLayout
from lm.data.storing.token_store import PairStore
from lm.data.tokenizing.bytes import ByteTokenizer
from tests.data.examples.stores import make_store

TOKENIZER = ByteTokenizer()
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
PAIRS = [("ab", "xyz"), ("", "w"), ("abcdefgh", "v"), ("abc", "uvwxyz"), ("k", ""), ("abcd", "rst")]


def make_pairs(cache, pairs):
    return PairStore(*(make_store(cache, [pair[side] for pair in pairs], TOKENIZER) for side in (0, 1)))


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path, PAIRS)


def texts(example):
    """Returns the texts of an example; checks that the decoder reads bos and the target without its last token."""
    assert example.tokens_T.tolist() == [BOS, *example.targets_T[:-1]] and (example.weights_T == 1).all()
    assert example.tokens_T.dtype == np.int32 and example.weights_T.dtype == np.float32
    sides = example.source_S, example.targets_T
    assert all(tokens[-1] == EOS and tokens.dtype == np.int32 for tokens in sides)
    return tuple(TOKENIZER.decode(tokens[:-1]) for tokens in sides)


def check_sizes(examples):
    target_sizes, source_sizes = examples.sizes(0)
    assert len(source_sizes) == len(target_sizes) == len(examples)
    for i in range(len(examples)):
        example = examples.make(0, i)
        assert (len(example.source_S), len(example.targets_T)) == (source_sizes[i], target_sizes[i])
    assert examples.num_targets() == target_sizes.sum()


def test_pairs_are_text_and_end_token(pairs):
    examples = PairExamples(pairs, 20, 20, TOKENIZER.special_tokens)
    assert [texts(examples.make(3, i)) for i in range(len(examples))] == PAIRS
    check_sizes(examples)
    assert examples.text == {"documents": 6, "bytes": 14, "words": 5, "unknown": 0}


def test_long_pairs_are_cut_before_the_end_token(pairs):
    examples = PairExamples(pairs, 5, 4, TOKENIZER.special_tokens)
    cut = [(source[:4], target[:3]) for source, target in PAIRS]
    assert [texts(examples.make(0, i)) for i in range(len(examples))] == cut
    check_sizes(examples)
    assert examples.notes == [
        "1 of 6 sources are truncated (data.source_length=5)",
        "1 of 6 targets are truncated (data.sequence_length=4)",
    ]
    assert PairExamples(pairs, 9, 7, TOKENIZER.special_tokens).notes == [], "the longest source and target just fit"
    assert examples.text["bytes"] == examples.text["words"] == 0
    # If only sources are cut, every target is still scored completely.
    assert PairExamples(pairs, 5, 7, TOKENIZER.special_tokens).text["bytes"] == 14


def test_long_pairs_are_dropped_on_request(pairs):
    examples = PairExamples(pairs, 5, 4, TOKENIZER.special_tokens, drop=True)
    kept = [pair for pair in PAIRS if len(pair[0]) < 5 and len(pair[1]) < 4]
    assert [texts(examples.make(0, i)) for i in range(len(examples))] == kept and 0 < len(kept) < len(PAIRS)
    check_sizes(examples)
    assert examples.notes == [
        "1 of 6 sources are too long, so their pairs are dropped (data.source_length=5)",
        "1 of 6 targets are too long, so their pairs are dropped (data.sequence_length=4)",
    ]
    again = pickle.loads(pickle.dumps(examples))
    assert texts(again.make(0, 2)) == kept[2]


LENGTH = 8


def cut_by_hand(text):
    tokens = [BOS, *TOKENIZER.encode(text[: LENGTH - 2]), EOS]
    return tokens, [*tokens, *[0] * (LENGTH - len(tokens))]


def test_paired_texts_are_cut_and_ended_once_and_each_pair_fills_a_row(tmp_path):
    sizes = [(0, 3), (LENGTH - 3, LENGTH - 2), (LENGTH - 1, LENGTH + 5), (LENGTH - 2, 1), (2, LENGTH - 1)]
    pairs = [tuple("abcdefghijklmnop"[:size] for size in each) for each in sizes]
    examples = PairedTexts(make_pairs(tmp_path, pairs), LENGTH, TOKENIZER.special_tokens)
    assert all(each.tolist() == [LENGTH] * 5 for each in examples.sizes(0)) and len(examples.sizes(0)) == 2
    assert examples.notes == ["3 of 10 texts are truncated (data.sequence_length=8)"]
    rows = EvalRows(examples, RowLayout(LENGTH, LENGTH))
    assert rows.num_rows == rows.totals["targets"] == 5
    assert rows.totals == {"targets": 5, "documents": 5, "bytes": 0, "words": 0, "unknown": 0}
    numbers = [4, 1, 2, 0, 3]
    batch = rows.rows([*numbers, 7])
    for row, number in enumerate(numbers):
        other, text = pairs[number]
        for side, content in ((batch, text), (batch.source, other)):
            tokens, padded = cut_by_hand(content)
            assert side.tokens[row].tolist() == padded
            assert side.segments[row].tolist() == [1] * len(tokens) + [0] * (LENGTH - len(tokens))
            assert side.positions[row][: len(tokens)].tolist() == list(range(len(tokens)))
    np.testing.assert_array_equal(batch.weights, [[1.0] + [0.0] * (LENGTH - 1)] * 5 + [[0.0] * LENGTH])
    assert not batch.targets.any()
    assert not batch.segments[5].any() and not batch.source.segments[5].any(), "a row past the end is padding"
