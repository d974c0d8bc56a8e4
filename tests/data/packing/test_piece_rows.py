"""Rows of pieces against a loop over tokens; each piece once an epoch, whoever asks."""

import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Config, defaults, source
from lm.data.examples.example import Piece
from lm.data.packing.packed_rows import PackedTrainRows
from lm.data.packing.piece_rows import PieceEvalRows, PieceLayout, lay_out_pieces

BATCH, LENGTH = 8, 24
FIELDS = ("tokens", "targets", "weights", "types", "positions", "segments")


def make_piece(columns, real=False):
    """From (token, target, weight, type) for each token."""
    tokens, targets, weights, types = zip(*columns, strict=True)
    return Piece(
        np.array(tokens, np.int32),
        np.array(targets, np.float32 if real else np.int32),
        np.array(weights, np.float32),
        np.array(types, np.int32),
    )


def by_hand(rows, length):
    """Each field of FIELDS as nested lists."""
    found = {field: [] for field in FIELDS}
    for row in rows:
        columns = [(*values, i, s) for s, piece in enumerate(row, start=1) for i, values in enumerate(piece)]
        columns += [(0,) * 6] * (length - len(columns))
        for field, values in zip(FIELDS, zip(*columns, strict=True), strict=True):
            found[field].append(list(values))
    return found


columns = st.tuples(st.integers(1, 99), st.integers(0, 99), st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 1))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.lists(columns, min_size=1, max_size=5), max_size=4), min_size=1, max_size=5),
    with_types=st.booleans(),
    real=st.booleans(),
)
def test_the_layout_equals_a_loop_over_tokens(rows, with_types, real):
    arrays = [[make_piece(piece, real) for piece in row] for row in rows]
    batch = lay_out_pieces(arrays, 21, with_types, real)
    wanted = by_hand(rows, 21)
    for field in FIELDS:
        found = getattr(batch, field)
        if field == "types" and not with_types:
            assert found is None
            continue
        real_field = field == "weights" or (field == "targets" and real)
        assert found.tolist() == wanted[field] and found.dtype == (np.float32 if real_field else np.int32), field
    assert batch.shape == (len(rows), 21) and batch.source is None


def test_targets_that_are_numbers_keep_them_also_beside_rows_of_padding():
    piece = make_piece([(5, -1.37, 1, 0), (6, 0, 0, 0)], real=True)
    batch = lay_out_pieces([[], [piece]], 3, real_targets=True)
    assert batch.targets.tolist() == [[0, 0, 0], [np.float32(-1.37), 0, 0]]
    assert lay_out_pieces([[]], 3, real_targets=True).targets.dtype == np.float32


def test_pieces_that_do_not_fit_a_row_are_never_written_into_the_next():
    piece = make_piece([(5, 5, 1, 0)] * 6)
    with pytest.raises(AssertionError, match="longer"):
        lay_out_pieces([[piece, piece], []], 10)


class Numbered:
    """Pieces that carry their number as tokens, and weigh 1 at their first tokens, as many as the epoch draws."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def sizes(self, epoch):
        return np.random.default_rng(epoch).integers(2, 12, self.count)

    def make(self, epoch, index):
        size = int(self.sizes(epoch)[index])
        scored = int(np.random.default_rng([epoch, index]).integers(0, size))
        tokens = np.full(size, 100 + index, np.int32)
        weights = (np.arange(size) < scored).astype(np.float32)
        return Piece(tokens, tokens + 1, weights, np.arange(size, dtype=np.int32) % 2)


def make_config(**options):
    values = defaults()
    values.data.train.a = source(path="unread.txt")
    values.data.tokenizer.extra_ids = 1
    values.data.sequence_length = LENGTH
    values.objective.name, values.model.family = "masked", "encoder"
    values.model.update(options)
    values.train.batch_size = BATCH
    return Config.from_dict(values.to_dict())


def pieces_in(batch, row):
    """Numbers of the pieces of a row, in order, with their first columns."""
    found = []
    for segment in range(1, batch.segments[row].max() + 1):
        place = np.flatnonzero(batch.segments[row] == segment)
        assert len(set(batch.tokens[row][place].tolist())) == 1 and np.ptp(place) == len(place) - 1
        found.append((int(batch.tokens[row][place[0]]) - 100, int(place[0])))
    return found


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_training_has_every_piece_once_an_epoch_and_the_same_for_whoever_asks():
    pieces = Numbered(120)
    rows = PackedTrainRows(make_config(token_types=2), {"a": pieces}, PieceLayout(LENGTH, with_types=True))
    epochs, step = {}, 0
    while len(epochs) < 4:
        batch = rows.rows(step, range(BATCH))
        for row, (name, epoch, number) in enumerate(rows.places(step, range(BATCH))):
            part = epochs.setdefault(epoch, [])
            assert (name, number) == ("a", len(part))
            part.append([index for index, _ in pieces_in(batch, row)])
            assert (batch.segments[row] > 0).sum() == sum(pieces.sizes(epoch)[part[-1]]) <= LENGTH
        assert np.array_equal(batch.types, np.where(batch.segments > 0, batch.positions % 2, 0))
        step += 1
    for epoch in range(3):
        assert sorted(index for row in epochs[epoch] for index in row) == list(range(120))
    assert epochs[0] != epochs[1] and rows.rows_per_epoch() == {"a": len(epochs[0])}
    again = pickle.loads(pickle.dumps(rows))
    for step in (9, 0, 3):
        whole = rows.rows(step, range(BATCH))
        for ids in ([5], [7, 2], range(4)):  # as other processes would ask for their part
            part = jax.tree.map(lambda x, ids=ids: x[list(ids)], whole)
            assert equal(again.rows(step, ids), part)


def test_a_config_tells_the_layout():
    assert PieceLayout.of(make_config()) == PieceLayout(LENGTH, max_hidden=8)
    assert PieceLayout.of(make_config(token_types=2)) == PieceLayout(LENGTH, with_types=True, max_hidden=8)
    assert PieceLayout.of(regression_config()) == PieceLayout(LENGTH, real_targets=True)


def regression_config():
    values = defaults()
    values.data.train.a = source(kind="tsv", path="unread.tsv", label_field="score")
    values.data.update(sequence_length=LENGTH, holdout="hash")
    values.objective.name, values.model.family = "regression", "encoder"
    return Config.from_dict(values.to_dict())


def test_evaluation_has_each_piece_once_of_epoch_0_and_padding_after():
    pieces = Numbered(100)
    rows = PieceEvalRows(pieces, PieceLayout(LENGTH, with_types=True))
    batches = [rows.rows(np.arange(i, i + BATCH)) for i in range(0, rows.num_rows + BATCH, BATCH)]
    places = [pieces_in(batch, row) for batch in batches for row in range(BATCH)]
    assert [index for row in places for index, _ in row] == list(range(100))
    assert [rows.places(row) for row in range(len(places))] == places, "and nothing in rows past the end"
    assert rows.num_rows < len(places) and not places[rows.num_rows]
    weights = sum(batch.weights.sum() for batch in batches)
    assert weights == rows.totals["targets"] == sum(pieces.make(0, i).weights_T.sum() for i in range(100))
    assert rows.totals == {"targets": weights, "documents": 100, "bytes": 0, "words": 0, "unknown": 0} and rows.missing
    beyond = rows.rows([rows.num_rows, rows.num_rows + 7])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(beyond)) and beyond.shape == (2, LENGTH)
    assert rows.rows([0]).types is not None and PieceEvalRows(pieces, PieceLayout(LENGTH)).rows([0]).types is None


def test_what_is_known_of_the_text_is_told():
    text = {"documents": 7, "bytes": 0, "words": 0, "unknown": 3}
    rows = PieceEvalRows(Numbered(9), PieceLayout(LENGTH), text=text, missing="made up")
    assert {**rows.totals, **text} == rows.totals and rows.missing == "made up"
