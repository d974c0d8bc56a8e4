"""The examples of autoencoders: what is deleted, shuffled and replaced, and that each text has a row of its own."""

import collections

import numpy as np
import pytest

from lm.data.examples.autoencoding import AutoencodingExamples, DropAndShuffle
from lm.data.packing.rows import PackedRows, RowLayout
from lm.data.tokenizing.bytes import ByteTokenizer
from tests.data.examples.stores import make_store

TOKENIZER, EOS, UNKNOWN = ByteTokenizer(), ByteTokenizer().eos_id, 999
TEXTS = ["abcdefghij", "klmnopqrstuvwxyz" * 2, "no", "one more text"]


def examples(folder, denoiser, word_dropout=0.0, seed=0):
    store = make_store(folder / "store", TEXTS, TOKENIZER)
    special, words = TOKENIZER.special_tokens, {"word_dropout": word_dropout, "unknown": UNKNOWN}
    return AutoencodingExamples(store, denoiser, (24, 20), special, seed, "a", **words)


@pytest.mark.parametrize(("length", "dropped", "kept"), [(10, 0.3, 7), (10, 0.9, 1), (1, 0.9, 1), (5, 0.0, 5)])
def test_the_given_share_of_tokens_is_deleted_and_the_order_kept(length, dropped, kept):
    tokens, denoiser = np.arange(length), DropAndShuffle(dropped, 0, EOS)
    seen = set()
    for seed in range(40):
        source, target = denoiser.make(tokens, np.zeros(0), np.random.default_rng(seed))
        assert source[-1] == EOS and target.tolist() == [*range(length), EOS]
        assert len(source) == kept + 1 and (np.diff(source[:-1]) > 0).all()
        assert denoiser.sizes(np.array([length]), np.zeros((1, 0)))[0].tolist() == [kept + 1]
        seen |= set(source[:-1].tolist())
    assert seen == set(range(length))


@pytest.mark.parametrize("distance", [1, 3])
def test_shuffling_keeps_every_token_and_bounds_how_far_it_moves(distance):
    tokens, denoiser, moves = np.arange(30), DropAndShuffle(0.0, distance, EOS), collections.Counter()
    for seed in range(60):
        source, _ = denoiser.make(tokens, np.zeros(0), np.random.default_rng(seed))
        assert sorted(source[:-1].tolist()) == list(range(30))
        moves.update((source[:-1] - np.arange(30)).tolist())
    assert set(moves) == set(range(-distance, distance + 1)), "every distance up to the bound occurs"


def test_word_dropout_replaces_inputs_of_the_decoder_but_not_the_first_or_the_targets(tmp_path):
    plain = examples(tmp_path, DropAndShuffle(0.0, 0, EOS))
    half = examples(tmp_path, DropAndShuffle(0.0, 0, EOS), word_dropout=0.5)
    every = examples(tmp_path, DropAndShuffle(0.0, 0, EOS), word_dropout=1.0)
    replaced = total = 0
    for index in range(len(plain)):
        one, other, none = (each.make(3, index) for each in (plain, half, every))
        assert one.tokens_T[1:].tolist() == one.targets_T[:-1].tolist() and one.tokens_T[0] == TOKENIZER.bos_id
        for each in (other, none):
            assert each.targets_T.tolist() == one.targets_T.tolist() == each.source_S.tolist()
            assert each.tokens_T[0] == one.tokens_T[0]
        assert (none.tokens_T[1:] == UNKNOWN).all()
        kept = other.tokens_T != UNKNOWN
        assert (other.tokens_T[kept] == one.tokens_T[kept]).all()
        replaced, total = replaced + (~kept).sum(), total + len(kept) - 1
    assert 0.25 < replaced / total < 0.75


def test_draws_depend_on_seed_epoch_and_text_and_each_text_has_a_row_of_its_own(tmp_path):
    denoiser = DropAndShuffle(0.2, 2, EOS)
    one, other = examples(tmp_path, denoiser, 0.3), examples(tmp_path, denoiser, 0.3, seed=1)

    def all_of(each, epoch):
        return [
            (example.source_S.tolist(), example.tokens_T.tolist())
            for example in (each.make(epoch, i) for i in range(len(each)))
        ]

    assert all_of(one, 0) == all_of(one, 0)
    assert all_of(one, 0) != all_of(one, 1) and all_of(one, 0) != all_of(other, 0)
    assert len(one) == 5, "the longest text is cut into two chunks, since a row holds 19 tokens and EOS"
    rows = PackedRows("a", one, 0, RowLayout(20, 24))
    assert rows.num_rows(0) == len(one) and all(len(rows._indices(0, row)) == 1 for row in range(5))
    assert one.num_targets() == sum(len(example.targets_T) for example in (one.make(0, i) for i in range(5)))
