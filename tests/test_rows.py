"""From a config and prepared data to rows: every objective of two-sided models, and those that cannot be served."""

import jax
import numpy as np
import pytest
from lm.data.packing.loader import EvalRows, TrainRows
from lm.data.packing.packed_rows import PackedTrainRows
from lm.data.packing.pair_rows import PairEvalRows
from lm.data.packing.piece_rows import PieceEvalRows
from lm.rows import _ends_sentence, eval_rows, train_rows

from lm.config import Config, MeshConfig, defaults, source
from lm.data.tokenizing.tokenizers import ByteTokenizer
from lm.errors import UserError
from lm.parallel.mesh import batch_sharding, make_mesh
from lm.runs.prepare import prepare

BATCH, SOURCE, LENGTH = 4, 64, 56
LINES = [(f"source {i} {'a. b! ' * (i % 4)}end.", f"target {i * i}{' c' * (i % 5)}") for i in range(120)]


def prepared(folder, name, length=LENGTH, overlong="truncate", **objective):
    for side, file in enumerate(("source.txt", "target.txt")):
        (folder / file).write_text("".join(f"{line[side]}\n" for line in LINES))
    values = defaults()
    target = {"target_path": str(folder / "target.txt")} if name == "seq2seq" else {}
    values.data.train.mine = source(path=str(folder / "source.txt"), document="line", **target)
    values.data.update(sequence_length=length, source_length=0 if name in ("causal", "masked") else SOURCE)
    values.data.update(cache_dir=str(folder / "cache"))
    values.data.tokenizer.update(kind="bytes", extra_ids=0 if name in ("causal", "seq2seq", "prefix_lm") else 103)
    values.data.pairs.overlong = overlong
    values.model.family = {"causal": "decoder", "masked": "encoder"}.get(name, "encoder_decoder")
    values.objective.update(name=name, permute_sentences=name == "infilling", **objective)
    values.model.token_types = 2 * values.objective.next_sentence
    values.train.batch_size = BATCH
    return prepare(Config.from_dict(values.to_dict()), folder / "run")


def segments_of(tokens, segments):
    return [tokens[segments == k].tolist() for k in range(1, segments.max() + 1)]


def examples_of(batch):
    """(source, inputs of the decoder, target) of every example of a batch."""
    for row in range(len(batch.tokens)):
        sources = segments_of(batch.source.tokens[row], batch.source.segments[row])
        inputs, targets = (segments_of(each[row], batch.segments[row]) for each in (batch.tokens, batch.targets))
        yield from zip(sources, inputs, targets, strict=True)


def test_pairs_reach_the_rows_as_they_were_written(tmp_path):
    found = prepared(tmp_path, "seq2seq")
    config, tokenizer = found.config, found.tokenizer
    rows = train_rows(config, found)
    assert isinstance(rows, PackedTrainRows)
    evaluated = eval_rows(config, tokenizer, found.stores["valid"])["mine"]
    assert isinstance(evaluated, PairEvalRows) and not evaluated.missing
    parts = {}
    for part, batch in (
        ("train", [rows.rows(step, range(BATCH)) for step in range(rows.rows_per_epoch()["mine"] // BATCH)]),
        ("valid", [evaluated.rows(range(evaluated.num_rows))]),
    ):
        parts[part] = set()
        for tokens, inputs, targets in (each for every in batch for each in examples_of(every)):
            assert inputs == [tokenizer.bos_id, *targets[:-1]]
            assert tokens[-1] == targets[-1] == tokenizer.eos_id
            pair = tokenizer.decode(tokens), tokenizer.decode(targets)
            assert pair in LINES and pair not in parts[part]
            parts[part].add(pair)
    assert not parts["train"] & parts["valid"]
    assert len(LINES) - 20 < len(parts["train"]) + len(parts["valid"]) <= len(LINES), "all but the epoch's last rows"
    assert evaluated.totals["documents"] == len(parts["valid"])
    assert evaluated.totals["bytes"] == sum(len(target) for _, target in parts["valid"])
    assert evaluated.totals["targets"] == evaluated.totals["bytes"] + len(parts["valid"])


@pytest.mark.parametrize("name", ["span_corruption", "ul2", "infilling", "prefix_lm"])
def test_every_denoising_objective_makes_rows(tmp_path, name):
    found = prepared(tmp_path, name)
    rows = train_rows(found.config, found)
    batch = rows.rows(3, range(BATCH))
    assert batch.shape == (BATCH, LENGTH) and batch.source.tokens.shape == (BATCH, SOURCE)
    assert (batch.weights == (batch.segments > 0)).all()
    for tokens, inputs, targets in examples_of(batch):
        assert tokens[-1] == targets[-1] == found.tokenizer.eos_id and inputs[0] == found.tokenizer.bos_id
    extra = found.tokenizer.vocab_size - found.tokenizer.num_extra_ids
    assert (batch.source.tokens >= extra).any() == (name != "prefix_lm")
    evaluated = eval_rows(found.config, found.tokenizer, found.stores["valid"])["mine"]
    whole = evaluated.rows(range(evaluated.num_rows))
    assert whole.weights.sum() == evaluated.totals["targets"] > 0 and evaluated.totals["bytes"] == 0


def check_layouts(found, steps, width):
    """Each device's part of a batch, made as by a host of its own, is what one host has."""
    batches = [train_rows(found.config, found).rows(step, range(BATCH)) for step in steps]
    shards = batch_sharding(make_mesh(MeshConfig(data=4, tensor=2))).devices_indices_map((BATCH, width))
    assert len(shards) == 8
    for rows, _ in shards.values():
        alone = train_rows(found.config, found)
        for step, batch in zip(steps, batches, strict=True):
            part = alone.rows(step, range(*rows.indices(BATCH)))
            jax.tree.map(lambda x, y, rows=rows: np.testing.assert_array_equal(x, y[rows]), part, batch)


def test_masks_are_the_same_on_one_device_and_on_eight_and_new_in_each_epoch(tmp_path):
    found = prepared(tmp_path, "span_corruption")
    whole = train_rows(found.config, found)
    steps = (0, 5, whole.rows_per_epoch()["mine"] // BATCH + 5)
    check_layouts(found, steps, SOURCE)
    first_extra = found.tokenizer.vocab_size - found.tokenizer.num_extra_ids
    epochs: list[dict[tuple, list]] = [{}, {}]
    for step in range(2 * steps[-1]):
        batch = whole.rows(step, range(BATCH))
        for row, (_, epoch, _) in enumerate(whole.places(step, range(BATCH))):
            one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
            for tokens, _, targets in examples_of(one) if epoch < 2 else []:
                epochs[epoch][uncorrupted(tokens, targets, first_extra)] = tokens
    # A shorter text has one span only, and that is its end (T5's masks begin with what is kept).
    common = [text for text in epochs[0].keys() & epochs[1].keys() if len(text) > 30]
    again = sum(epochs[0][text] == epochs[1][text] for text in common)
    assert len(common) > 20 and again < 0.2 * len(common)


def uncorrupted(tokens: list[int], targets: list[int], first_extra: int) -> tuple[int, ...]:
    """The text behind an example of span corruption."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= first_extra:
            inside = spans.setdefault(token, [])
        else:
            inside.append(token)
    return tuple(each for token in tokens[:-1] for each in spans.get(token, [token]))


@pytest.mark.parametrize("objective", [{}, {"whole_words": True}, {"next_sentence": True}], ids=str)
def test_masked_rows_hide_some_of_the_text_anew_in_each_epoch(tmp_path, objective):
    found = prepared(tmp_path, "masked", **objective)
    rows, tokenizer = train_rows(found.config, found), found.tokenizer
    per_epoch = rows.rows_per_epoch()["mine"]
    check_layouts(found, (0, per_epoch // BATCH + 5), LENGTH)
    epochs: list[dict[tuple, set]] = [{}, {}]
    step = 0
    while not step or rows.places(step, [0])[0][1] < 2:
        batch = rows.rows(step, range(BATCH))
        hidden = batch.weights > 0
        text = np.where(hidden, batch.targets, batch.tokens)
        assert batch.source is None and (batch.types is not None) == ("next_sentence" in objective)
        assert not np.isin(text[hidden], [tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]).any()
        for row, (_, epoch, _) in enumerate(rows.places(step, range(BATCH))):
            for segment in range(1, batch.segments[row].max() + 1) if epoch < 2 else []:
                inside = batch.segments[row] == segment
                key = tuple(text[row][inside].tolist())
                assert key[0] == tokenizer.bos_id and key[-1] == tokenizer.eos_id
                places = tuple(np.flatnonzero(hidden[row][inside]).tolist())
                assert places
                epochs[epoch].setdefault(key, set()).add(places)
        step += 1
    for texts in epochs if "next_sentence" not in objective else []:
        store = found.stores["train"]["mine"]
        documents = {tokenizer.decode(store.document(i)) for i in range(store.num_documents)}
        short = {text for text in documents if len(text) <= LENGTH - 2}
        assert len(short) > 50 and short <= {tokenizer.decode(key) for key in texts}, "each once at least"
        common = [key for key in texts if len(key) > 25 and key in epochs[0] and key in epochs[1]]
        assert len(common) > 20 and sum(epochs[0][key] == epochs[1][key] for key in common) < 0.2 * len(common)
    evaluated = eval_rows(found.config, tokenizer, found.stores["valid"])["mine"]
    batch = evaluated.rows(range(evaluated.num_rows))
    assert isinstance(evaluated, PieceEvalRows) and batch.weights.sum() == evaluated.totals["targets"] > 0
    assert evaluated.totals["bytes"] == 0 and evaluated.missing
    assert evaluated.totals["documents"] == found.stores["valid"]["mine"].num_documents
    again = eval_rows(found.config, tokenizer, found.stores["valid"])["mine"].rows(range(evaluated.num_rows))
    jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_causal_rows_are_windows(tmp_path):
    found = prepared(tmp_path, "causal")
    assert isinstance(train_rows(found.config, found), TrainRows)
    assert isinstance(eval_rows(found.config, found.tokenizer, found.stores["valid"])["mine"], EvalRows)


def test_pairs_that_are_all_too_long_are_told(tmp_path):
    found = prepared(tmp_path, "seq2seq", length=4, overlong="drop")
    with pytest.raises(UserError, match=r"config.data.train.mine: every pair is longer than a row"):
        train_rows(found.config, found)
    evaluated = eval_rows(found.config, found.tokenizer, found.stores["valid"])["mine"]
    assert evaluated.totals["targets"] == 4 * evaluated.totals["documents"] and "truncated" in evaluated.missing


def test_sentences_end_with_their_marks():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(np.flatnonzero(_ends_sentence(tokenizer))) == "!.?"
