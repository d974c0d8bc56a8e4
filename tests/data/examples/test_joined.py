"""Examples that are joined for a whole batch equal the examples made one by one."""

import dataclasses
import itertools

import grain
import jax
import numpy as np
import pytest

from lm.config import CleaningConfig, Config, defaults, source
from lm.data import order
from lm.data.examples.labelled import TextExamples, TextTokens
from lm.data.examples.pairs import PairExamples
from lm.data.packing.rows import PackedRows, RowLayout, TrainRows, WindowRows
from lm.data.reading.readers import Labelled
from lm.data.storing import example_store
from lm.data.storing.token_store import PairStore
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.special_tokens import TEXT, SpecialTokens, Template
from tests.data.packing.texts import equal
from tests.data.storing.documents import build

TOKENIZER = ByteTokenizer()
WORDS = ["", "a", "bc", "a longer text", "x" * 30, "one more", "and the last of them", "b " * 9]
TEMPLATES = {
    "own": SpecialTokens(1, 2),
    "bert": SpecialTokens(1, 2, one=Template.of_one(1, TEXT, 2), two=Template((1, TEXT, 2, TEXT, 2), (0, 0, 0, 1, 1))),
    "roberta": SpecialTokens(1, 2, two=Template.of_one(1, TEXT, 2, 2, TEXT, 2), forced_first=7, first_of_target=2),
    "none": SpecialTokens(None, 2, one=Template.of_one(TEXT)),
}
EPOCH = 3


def special_tokens_tokenizer(special):
    tokenizer = ByteTokenizer()
    tokenizer.special_tokens = special
    return tokenizer


def check(examples, layout, indices):
    """Checks rows that hold the examples with these indices."""
    rows = [np.array(each, np.int64) for each in indices]
    one_by_one = layout.lay_out([[examples.make(EPOCH, int(i)) for i in row] for row in rows])
    assert equal(one_by_one, layout.lay_out_joined(examples, EPOCH, rows))


@pytest.mark.parametrize("special", TEMPLATES)
@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize("labels", [("no", "yes"), ()])
@pytest.mark.parametrize("pooling", ["first", "last"])
def test_labelled_texts(special, is_pair, labels, pooling):
    config = Config()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, labels=labels, sequence_length=24),
        model=dataclasses.replace(config.model, pooling=pooling),
    )
    names = labels or ("0.5", "-2")
    raw = [
        Labelled(text, text[::-1] + "!" * is_pair if is_pair else None, names[i % 2]) for i, text in enumerate(WORDS)
    ]
    tokenizer = special_tokens_tokenizer(TEMPLATES[special])
    store = example_store.of_inputs(raw, TextTokens.encode(raw, tokenizer), tokenizer)
    examples = TextExamples(store, config, tokenizer, True)
    assert (examples.join(0, np.arange(2)) is None) == (special == "none" and not is_pair)
    layout = RowLayout(64, with_types=True, real_targets=not labels)
    check(examples, layout, [[3, 0], [], [1], [5, 2, 6], [4, 7]])


@pytest.mark.parametrize("special", TEMPLATES)
def test_pairs(tmp_path, special):
    kept = [text for text in WORDS if text]
    sides = [kept, [text[::-1] for text in kept]]
    stores = [build(tmp_path, texts, TOKENIZER, texts, CleaningConfig(min_chars=0)) for texts in sides]
    examples = PairExamples(PairStore(*stores), 12, 20, TEMPLATES[special])
    check(examples, RowLayout(60, 60), [[3, 0], [], [1], [5, 2], [4, 6]])


def test_rows_of_two_sources_and_two_epochs_keep_their_order(tmp_path):
    values = defaults()
    values.train.batch_size, values.data.sequence_length = 7, 8
    for name, weight in (("a", 1.0), ("b", 0.4)):
        values.data.train[name] = source(path="x", weight=weight)
    config = Config.from_dict(values.to_dict())
    texts = {name: [f"{name}{number}" * (number % 4 + 1) for number in range(9)] for name in "ab"}
    stores = {name: build(tmp_path, each, TOKENIZER, name) for name, each in texts.items()}
    rows = TrainRows(config, {name: WindowRows(name, store, 0, 8) for name, store in stores.items()}, RowLayout(8))
    for step in range(4):
        whole = rows.rows(step, range(7))
        assert len({(name, epoch) for name, epoch, _ in rows.locate(step, range(7))}) > 1
        for number in range(7):
            alone = rows.rows(step, [number])
            assert all(
                np.array_equal(each[number], one[0])
                for each, one in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True)
            )
    assert rows.rows(0, [6, 2]).tokens.tolist() == rows.rows(0, range(7)).tokens[[6, 2]].tolist()


def test_packed_rows_across_the_end_of_an_epoch(tmp_path):
    stores = [build(tmp_path, WORDS[1:], TOKENIZER, number) for number in range(2)]
    rows = PackedRows("a", PairExamples(PairStore(*stores), 12, 20, TEMPLATES["own"]), 0, layout := RowLayout(40, 40))
    located = [rows.locate(index) for index in range(2 * rows.num_rows(0))]
    assert {epoch for epoch, _ in located} >= {0, 1}
    alone = [rows.batch([each], layout) for each in located]
    assert equal(rows.batch(located, layout), jax.tree.map(lambda *parts: np.concatenate(parts), *alone))


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_shuffled_items_are_those_of_grain(count):
    for seed in (0, 5, 2**32 - 1):
        data = grain.MapDataset.range(count).shuffle(seed=seed).repeat()
        for index in itertools.chain(range(3 * min(count, 9)), (10**6, 10**12)):
            assert order.shuffled(index, count, seed) == (index // count, data[index])
