"""The schedule of continuous batching, on rows that only count their steps, and the capacities of the cache."""

import numpy as np
import pytest

from lm.decoding import rows


class Counter:
    """An engine whose inputs take a given number of steps."""

    def __init__(self, lengths, num_rows):
        self._lengths, self._left_B, self.steps, self.found = lengths, np.zeros(num_rows, int), 0, []

    def admit(self, free, inputs):
        assert (self._left_B[list(free)] == 0).all()
        self._left_B[list(free)] = [self._lengths[number] for number in inputs]

    def run(self, min_alive):
        while (self._left_B > 0).sum() > min_alive:
            self._left_B = np.maximum(self._left_B - 1, 0)
            self.steps += 1
        return self._left_B > 0

    def finish(self, row, number):
        self.found.append(number)


@pytest.mark.parametrize(("num_rows", "count"), [(32, 1000), (4, 7), (1, 3), (8, 8), (8, 3)])
def test_each_input_is_decoded_once_in_fewer_steps_than_batch_by_batch(num_rows, count):
    """Inputs in descending order of length, as outputs roughly are if sources are sorted."""
    random = np.random.default_rng(0)
    lengths = np.sort(random.integers(5, 35, count))[::-1] * random.uniform(0.7, 1.3, count)
    lengths = np.maximum(lengths.astype(int), 1)
    engine = Counter(lengths, num_rows)
    _, group = rows.sizes(count, num_rows)
    yielded = [number for numbers in rows.run_all(engine, range(count), num_rows, group) for number in numbers]
    assert yielded == engine.found and sorted(yielded) == list(range(count))
    batches = sum(max(lengths[first : first + num_rows]) for first in range(0, count, num_rows))
    assert lengths.sum() <= engine.steps * num_rows and engine.steps <= batches
    if count == 1000:
        assert engine.steps < 0.9 * batches and lengths.sum() > 0.85 * engine.steps * num_rows


def test_capacity_follows_the_longest_row_and_source():
    assert [rows.capacity_for(length, 100) for length in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    assert [rows.source_capacity_for(length, 256) for length in (9, 64, 65, 128, 129)] == [64, 64, 96, 128, 256]
    assert rows.source_capacity_for(9, 96) == 96  # too little would be gained
