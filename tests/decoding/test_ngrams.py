"""Blocked n-grams against a search through sets."""

import jax
import numpy as np
import pytest

from lm.decoding.ngrams import completes_repeat


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_what_would_come_twice_is_found_at_every_length(n):
    R, T, V = 40, 7, 4
    tokens_RT = np.random.default_rng(n).integers(0, V, (R, T))
    blocked = jax.jit(completes_repeat, static_argnums=(2, 3))
    for length in range(T + 1):
        found_RV = np.asarray(blocked(tokens_RT, length, n, V))
        for row in range(R):
            text = tokens_RT[row, :length].tolist()
            there = {tuple(text[i : i + n]) for i in range(length - n + 1)}
            beginning = text[length - n + 1 :] if length >= n - 1 else [None]
            assert found_RV[row].tolist() == [(*beginning, v) in there for v in range(V)]


def test_n_grams_longer_than_the_output_block_nothing():
    assert not np.asarray(completes_repeat(np.zeros((2, 3), int), 3, 5, 4)).any()
