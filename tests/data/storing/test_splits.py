"""Subsets, folds and the holdout: for every kind of data, the hash of an example's key determines its split."""

import dataclasses
import itertools
import json
from fractions import Fraction

import pytest

from lm.config import Config, DataConfig, SourceConfig, defaults, source
from lm.data.reading.readers import Labelled, Pair, Question, Tagged
from lm.data.storing.splits import Subset, exact, split_sources
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.runs.prepare import prepare, prepare_split
from lm.tasks.task import Tokenizers

BYTES = ByteTokenizer()


def take(examples, low, high, fold=0, folds=1):
    subset = Subset.of(SourceConfig(part=(low, high)), DataConfig(fold=fold, folds=folds))
    return [each for each in examples if subset.holds(each.key)]


def examples(number=400):
    return [Labelled(f"text {i}", None, "x") for i in range(number)]


def test_subsets_that_do_not_overlap_share_no_example_and_miss_none():
    every = examples()
    for fold in range(3):
        cuts = (0.0, 0.1, 0.3, 0.7, 1.0)
        subsets = [take(every, *bounds, fold, 3) for bounds in itertools.pairwise(cuts)]
        assert sorted(itertools.chain(*subsets), key=every.index) == every
        for subset, share in zip(subsets, (0.1, 0.2, 0.4, 0.3), strict=True):
            assert abs(len(subset) / len(every) - share) < 0.1
            assert subset == [each for each in every if each in subset], "in their order"
    assert take(every, 0.0, 1.0, 2, 5) == every


@pytest.mark.parametrize("folds", [2, 3, 7, 10])
def test_each_example_is_in_one_fold(folds):
    every = examples()
    held = [take(every, 0.0, 1 / folds, fold, folds) for fold in range(folds)]
    assert sorted(itertools.chain(*held), key=every.index) == every
    for fold in range(folds):
        others = take(every, 1 / folds, 1.0, fold, folds)
        assert sorted(held[fold] + others, key=every.index) == every


def test_examples_with_the_same_key_stay_together():
    pairs = [Labelled(f"premise {i // 3}", f"hypothesis {i}", "x") for i in range(300)]
    half = take(pairs, 0.0, 0.5)
    assert 0 < len(half) < 300 and len({each.text for each in half}) * 3 == len(half)
    questions = [Question(str(i), f"article {i // 10}", "?", f"context {i}", ()) for i in range(300)]
    half = take(questions, 0.0, 0.5)
    assert 0 < len(half) < 300 and len({each.title for each in half}) * 10 == len(half)
    translations = [Pair(f"source {i // 3}", (f"target {i}",)) for i in range(300)]
    half = take(translations, 0.0, 0.5)
    assert 0 < len(half) < 300 and len({each.source for each in half}) * 3 == len(half)
    assert take([Tagged(("a", "b"), ("O", "O"))], 0.0, 1.0)


def test_a_subset_of_a_subset():
    subset = Subset(Fraction(1, 5), Fraction(7, 10)).narrow(0, 0.1)
    assert (subset.low, subset.high) == (Fraction(1, 5), Fraction(1, 4))
    every, whole = examples(), Subset(Fraction(1, 10), Fraction(9, 10), 1, 2)
    held, rest = (
        [each for each in every if whole.narrow(*bounds).holds(each.key)] for bounds in ((0, 0.25), (0.25, 1))
    )
    assert sorted(held + rest, key=every.index) == take(every, 0.1, 0.9, 1, 2)
    assert 0.1 < len(held) / len(every) < 0.3


def test_bounds_are_exact():
    assert (exact(0.1), exact(1 / 3), exact(1.0)) == (Fraction(1, 10), Fraction(1, 3), 1)
    assert exact(Fraction(1, 7)) == Fraction(1, 7) and exact(0.0) == 0
    assert 0 < exact(1e-9) < Fraction(1, 10**8), "a small share is not rounded to nothing"


LINES = [f"line {i} of the text" for i in range(240)]


@pytest.fixture(params=["documents", "pairs", "labelled"])
def config(request, tmp_path):
    """Returns a function that makes a config of LINES, as documents, pairs or labelled texts, with changed settings."""
    path = tmp_path / "lines.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text, "other": "x", "label": "ab"[len(text) % 2]}) + "\n" for text in LINES)
    )
    fields = {"documents": {}, "pairs": {"target_field": "other"}, "labelled": {"label_field": "label"}}

    def make(splits, **data):
        values = defaults()
        for split, part in splits.items():
            values.data[split].lines = source(kind="jsonl", path=str(path), part=part, **fields[request.param])
        values.data.tokenizer.kind = "bytes"
        values.data.update(sequence_length=32, cache_dir=str(tmp_path / "cache"), **data)
        if request.param != "documents":
            name, family = {"pairs": ("seq2seq", "encoder_decoder"), "labelled": ("classification", "encoder")}[
                request.param
            ]
            values.objective.name, values.model.family = name, family
        return Config.from_dict(values.to_dict())

    return make


def texts_of(store):
    store = getattr(store, "source", store)
    if hasattr(store, "raw"):
        return [each.text for each in store.raw]
    return [BYTES.decode(store.document(i)) for i in range(store.num_documents)]


def stores_of(config, splits):
    return {split: prepare_split(config, Tokenizers(BYTES, BYTES), split)["lines"] for split in splits}


def test_every_kind_of_data_has_subsets_that_share_no_example_and_folds_that_hold_each_once(config):
    splits = {"train": (0.25, 1.0), "valid": (0.125, 0.25), "test": (0.0, 0.125)}
    tested, fingerprints = [], set()
    for fold in range(8):
        stores = stores_of(config(splits, folds=8, fold=fold), splits)
        found = [texts_of(each) for each in stores.values()]
        assert sorted(itertools.chain(*found)) == sorted(LINES), "no example is in two splits, and none is missing"
        tested += found[-1]
        fingerprints.add(stores["train"].fingerprint)
    assert sorted(tested) == sorted(LINES), "each example is tested in one fold"
    assert len(fingerprints) == 8


@pytest.mark.parametrize("fold", [0, 1])
def test_a_holdout_takes_its_share_of_the_subset(config, fold):
    data = {"folds": 2, "fold": fold, "holdout_fraction": 0.25}
    whole = texts_of(
        stores_of(config({"train": (0.0, 0.5), "valid": (0.5, 1.0)}, folds=2, fold=fold), ["train"])["train"]
    )
    train, valid = map(texts_of, stores_of(config({"train": (0.0, 0.5)}, **data), ["train", "valid"]).values())
    assert sorted(train + valid) == sorted(whole) and 0.1 < len(valid) / len(whole) < 0.4
    assert 80 < len(whole) < 160


def test_the_tail_of_a_subset_is_held_out(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    values = defaults()
    values.data.train.lines = source(path=str(tmp_path / "lines.txt"), document="line", part=(0.0, 0.5))
    values.data.tokenizer.kind = "bytes"
    values.data.update(holdout="tail", sequence_length=32, cache_dir=str(tmp_path / "cache"))
    config = Config.from_dict(values.to_dict())
    stores = prepare(config, tmp_path / "run").stores
    train, valid = ("".join(texts_of(stores[split]["lines"])) for split in ("train", "valid"))
    subset = Subset(Fraction(0), Fraction(1, 2))
    assert train + valid == "".join(line for line in LINES if subset.holds(line)) != "".join(LINES)
    assert len(train) == int(0.9 * len(train + valid))


def test_sources_of_a_split_are_in_the_order_of_their_names_without_those_of_weight_0():
    named = {name: SourceConfig(path=name, weight=weight) for name, weight in (("b", 1.0), ("a", 2.0), ("c", 0.0))}
    data = DataConfig(train=named, test={"t": SourceConfig(path="t", weight=0.0)})
    found = {split: split_sources(data, split) for split in ("train", "valid", "test")}
    assert {split: [each.label_of_side for each in sources] for split, sources in found.items()} == {
        "train": ["config.data.train.a (train side)", "config.data.train.b (train side)"],
        "valid": ["config.data.train.a (valid side)", "config.data.train.b (valid side)"],
        "test": ["config.data.test.t"],
    }
    own = split_sources(dataclasses.replace(data, valid={"v": SourceConfig(path="v")}), "valid")
    assert [(each.label_of_side, each.side, each.identity()) for each in own] == [("config.data.valid.v", "all", "all")]
