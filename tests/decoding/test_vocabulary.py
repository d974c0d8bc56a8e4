"""Tokens that may be chosen: special tokens, and repeated n-grams against a search through sets."""

import jax
import numpy as np
import pytest

from lm.decoding.vocabulary import Vocabulary, choosable, completes_repeat


def test_begin_token_padding_and_entries_beyond_the_vocabulary_are_not_choosable():
    def chosen(**values):
        return np.flatnonzero(choosable(Vocabulary(**values), 8)).tolist()

    assert chosen(size=6, bos_id=1, eos_id=2) == [0, 2, 3, 4, 5]
    assert chosen(size=6, bos_id=1, eos_id=2, pad_id=0, pad_is_special=True) == [2, 3, 4, 5]
    assert chosen(size=6, bos_id=2, eos_id=2, pad_id=2, pad_is_special=True) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_tokens_that_would_repeat_an_n_gram_are_found_at_every_length(n):
    R, T, V = 40, 7, 4
    tokens_RT = np.random.default_rng(n).integers(0, V, (R, T))
    repeats = jax.jit(completes_repeat, static_argnums=(2, 3))
    for length in range(T + 1):
        found_RV = np.asarray(repeats(tokens_RT, length, n, V))
        for row in range(R):
            text = tokens_RT[row, :length].tolist()
            present = {tuple(text[i : i + n]) for i in range(length - n + 1)}
            start = text[length - n + 1 :] if length >= n - 1 else [None]
            assert found_RV[row].tolist() == [(*start, v) in present for v in range(V)]


def test_n_grams_longer_than_the_output_exclude_nothing():
    assert not np.asarray(completes_repeat(np.zeros((2, 3), int), 3, 5, 4)).any()
