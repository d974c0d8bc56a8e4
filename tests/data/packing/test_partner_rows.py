"""Texts that belong together: a row each, their partners in the same rows, each cut and ended once."""

import numpy as np

from lm.data.packing.partner_rows import PartnerEvalRows, PartnerLayout

BOS, EOS, LENGTH = 1, 2, 8


def pair(first, second):
    """As `lm.data.examples.pairs.PairExamples` makes it: both end with eos."""
    return tuple(np.array([*range(10, 10 + size), EOS], np.int32) for size in (first, second))


class FivePairs:
    def __len__(self):
        return 5

    def make(self, epoch, index):
        return pair(index, index + 1)


def by_hand(size):
    text = [BOS, *range(10, 10 + min(size, LENGTH - 2)), EOS]
    return text, [*text, *[0] * (LENGTH - len(text))]


def test_texts_are_cut_and_ended_once():
    sizes = [(0, 3), (LENGTH - 3, LENGTH - 2), (LENGTH - 1, LENGTH + 5)]
    batch = PartnerLayout(LENGTH, BOS).lay_out([*([pair(*each)] for each in sizes), []])
    for row, (partner, text) in enumerate(sizes):
        for side, size in ((batch, text), (batch.source, partner)):
            tokens, padded = by_hand(size)
            assert side.tokens[row].tolist() == padded
            assert side.segments[row].tolist() == [1] * len(tokens) + [0] * (LENGTH - len(tokens))
            assert side.positions[row][: len(tokens)].tolist() == list(range(len(tokens)))
    np.testing.assert_array_equal(batch.weights, [[1.0] + [0.0] * (LENGTH - 1)] * 3 + [[0.0] * LENGTH])
    assert not batch.segments[3].any() and not batch.source.segments[3].any(), "a row of padding"


def test_every_pair_is_a_row_of_its_own():
    rows = PartnerEvalRows(FivePairs(), PartnerLayout(LENGTH, BOS))
    assert rows.num_rows == rows.totals["targets"] == 5
    batch = rows.rows([4, 1, 7])
    assert [row.tolist() for row in batch.tokens[:2]] == [by_hand(5)[1], by_hand(2)[1]]
    assert [row.tolist() for row in batch.source.tokens[:2]] == [by_hand(4)[1], by_hand(1)[1]]
    assert not batch.segments[2].any(), "past the end"
