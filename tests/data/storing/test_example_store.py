"""From a config to labelled examples: their splits, cleaning and labels."""

import dataclasses
import json

import pytest

from lm.config import Config
from lm.data.reading.readers import Labelled
from lm.data.storing.example_store import labels_of
from lm.data.storing.splits import split_sources
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.vocabularies import CharacterTokenizer
from lm.errors import UserError
from lm.runs.prepare import prepare_split
from lm.tasks import task_of
from lm.tasks.task import Tokenizers

BYTES = ByteTokenizer()


def stores_of(config, split, tokenizer=BYTES):
    return prepare_split(config, Tokenizers(tokenizer, tokenizer), split)


@pytest.fixture
def make(tmp_path):
    """Returns a config whose data sources are files of records; each split is a dict of sources by name."""

    def make(objective="classification", cleaning=None, options=None, data=None, **splits):
        sources = {}
        for split, by_name in splits.items():
            sources[split] = {}
            for name, records in by_name.items():
                path = tmp_path / f"{split}-{name}.jsonl"
                path.write_text("".join(json.dumps(record) + "\n" for record in records))
                sources[split][name] = {"kind": "jsonl", "path": str(path), "label_field": "label", **(options or {})}
        return Config.from_dict(
            {
                "data": {**sources, "sequence_length": 32, "cleaning": cleaning or {}, **(data or {})},
                "objective": {"name": objective},
                "model": {"family": "encoder", "num_heads": 6},
                "checkpoint": {"best_metric": "valid/loss"},
            }
        )

    return make


def texts(count, labels="ab"):
    return [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(count)]


def test_each_split_has_the_sources_that_are_named(make):
    config = make(train={"one": texts(5), "two": texts(3)}, valid={"v": texts(2)}, test={"t": texts(4)})
    found = {split: stores_of(config, split) for split in ("train", "valid", "test")}
    sizes = {split: {name: len(store.raw) for name, store in stores.items()} for split, stores in found.items()}
    assert sizes == {"train": {"one": 5, "two": 3}, "valid": {"v": 2}, "test": {"t": 4}}
    store = found["train"]["one"]
    assert store.name == "one" and store.raw[3] == Labelled("text 3", None, "b")
    assert [BYTES.decode(store.tokens.texts[i]) for i in range(5)] == [each.text for each in store.raw]
    assert store.counts == {"examples": 5, "documents": 5, "tokens": 30, "bytes": 30, "words": 10, "unknown": 0}
    assert store.label_counts == {"a": 5, "b": 3}, "all sources of the split are counted"
    off = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train={**config.data.train, "two": dataclasses.replace(config.data.train["two"], weight=0.0)}
        ),
    )
    assert list(stores_of(off, "train")) == ["one"]


@pytest.mark.parametrize("part", [[0.0, 1.0], [0.5, 1.0]])
def test_without_validation_sources_a_share_of_each_subset_is_held_out(make, part):
    config = make(train={"one": texts(300)}, options={"part": part}, data={"holdout_fraction": 0.2})
    train, valid = (stores_of(config, split)["one"] for split in ("train", "valid"))
    kept = {each.text for each in train.raw}
    held = {each.text for each in valid.raw}
    assert not kept & held and abs(len(held) / len(kept | held) - 0.2) < 0.08
    alone = make(train={"one": texts(300)}, valid={"one": texts(2)}, options={"part": part})
    whole = stores_of(alone, "train")["one"]
    assert {each.text for each in whole.raw} == kept | held
    assert len({train.fingerprint, valid.fingerprint, whole.fingerprint}) == 3


def test_folds_rotate_every_split(make):
    def of(fold):
        parts = {"train": [0.4, 1.0], "valid": [0.2, 0.4], "test": [0.0, 0.2]}
        config = make(
            train={"x": texts(200)}, valid={"x": texts(200)}, test={"x": texts(200)}, data={"folds": 5, "fold": fold}
        )
        named = {
            split: {"x": dataclasses.replace(getattr(config.data, split)["x"], part=tuple(part))}
            for split, part in parts.items()
        }
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **named))
        stores = {split: stores_of(config, split)["x"] for split in parts}
        return {split: {each.text for each in store.raw} for split, store in stores.items()}, stores["test"].fingerprint

    folds, fingerprints = zip(*map(of, range(5)), strict=True)
    everything = {f"text {i}" for i in range(200)}
    for fold in folds:
        assert fold["train"] | fold["valid"] | fold["test"] == everything
        assert sum(map(len, fold.values())) == 200
    assert set().union(*(fold["test"] for fold in folds)) == everything
    assert sum(len(fold["test"]) for fold in folds) == 200
    assert folds[1]["test"] != folds[0]["test"] and len(set(fingerprints)) == 5


def test_texts_are_cleaned_and_only_those_of_training_are_dropped(make):
    records = [
        {"text": t, "pair": p, "label": "ab"[i % 2]}
        for i, (t, p) in enumerate([(" <b>x</b>  y ", "p"), ("x y", "p"), ("", ""), ("z", "q")])
    ]
    cleaning = {"strip_html": True, "whitespace": "collapse", "min_chars": 2, "deduplicate": True}
    config = make(train={"s": records}, valid={"s": records}, cleaning=cleaning, options={"pair_field": "pair"})
    train, valid = (stores_of(config, split)["s"] for split in ("train", "valid"))
    assert [(each.text, each.pair) for each in train.raw] == [("x y", "p"), ("z", "q")]
    assert train.notes == ["texts dropped (too_short): 1", "texts dropped (duplicate): 1"]
    assert [(each.text, each.pair) for each in valid.raw] == [("x y", "p"), ("x y", "p"), ("", ""), ("z", "q")]
    assert valid.notes == [] and BYTES.decode(valid.tokens.pairs[3]) == "q"


def test_notes_count_the_examples_of_their_own_split(make, tmp_path):
    """Every third answer is misplaced; what was noted about the file as a whole says so."""
    entries = [
        {
            "id": str(i),
            "question": "q",
            "context": f"a b {i}",
            "answers": {"text": ["b"], "answer_start": [2 + (i % 3)]},
        }
        for i in range(30)
    ]
    entries[0]["answers"]["text"] = [""]
    options, data = {"label_field": ""}, {"holdout_fraction": 0.4, "context_overlap": 8}
    config = make("span_qa", train={"s": entries}, options=options, data=data)
    stores = {split: stores_of(config, split)["s"] for split in ("train", "valid")}
    for store in stores.values():
        wrong = sum(each.placed != each.answers for each in store.raw)
        assert 0 < wrong < 20 and store.notes[0].startswith(f"{wrong} answers do not match the context")
    assert sum(int(store.notes[0].split()[0]) for store in stores.values()) == 21

    mixed = [{"text": f"text {i}", "label": i % 2 if i % 4 else str(i % 2)} for i in range(40)]
    notes = ["labels have several types (30 integers, 10 texts); equal values count as one label"]
    assert stores_of(make(train={"s": mixed}, valid={"s": texts(2, "01")}), "train")["s"].notes == notes
    part = stores_of(make(train={"s": mixed}, valid={"s": texts(2, "01")}, options={"part": [0, 0.5]}), "train")["s"]
    assert part.notes == [f"{notes[0]} (in the whole data source)"]


def test_fingerprints_depend_on_all_that_decides_the_tokens(make):
    records = {"train": {"s": texts(6)}, "valid": {"s": texts(6)}}
    config = make(**records)
    first = stores_of(config, "train")["s"].fingerprint
    assert stores_of(config, "train")["s"].fingerprint == first
    others = [
        stores_of(config, "valid")["s"],
        stores_of(config, "train", CharacterTokenizer("tex 0123456789"))["s"],
        stores_of(make(**records, cleaning={"whitespace": "trim"}), "train")["s"],
        stores_of(make(**records, options={"part": [0.0, 0.99]}), "train")["s"],
    ]
    assert len({first, *(each.fingerprint for each in others)}) == 5


def test_labels_are_those_of_train_in_order(make):
    def labels(*values):
        records = [{"text": "same", "label": value} for value in values]
        return labels_of(stores_of(make(train={"s": records}, valid={"s": records}), "train"))

    assert labels("pos", "neg", "pos") == ("neg", "pos")
    assert labels(10, 9, -1) == ("-1", "9", "10"), "numbers by value"
    assert labels(10, "9x") == ("10", "9x")
    with pytest.raises(UserError, match=r"config\.data\.train: all 2 labels are 'a'"):
        labels("a", "a")
    with pytest.raises(UserError, match=r"all 11 examples have different labels"):
        labels(*(f"text {i}" for i in range(11)))


def test_an_unknown_label_is_refused_with_its_first_example(make):
    splits = {"train": {"s": texts(4)}, "valid": {"v": [*texts(3), {"text": "odd one", "label": "c"}]}}
    config = make(**splits, data={"labels": ["a", "b"]})
    stores_of(config, "train")
    with pytest.raises(UserError, match=r"config\.data\.valid\.v: label 'c' is not one of a, b .* 'odd one'"):
        stores_of(config, "valid")
    with pytest.raises(UserError, match=r"config\.data\.train\.s: label 'b' is not one of a, c"):
        stores_of(make(**splits, data={"labels": ["a", "c"]}), "train")


def test_errors_name_the_source(make):
    config = make(train={"s": [{"text": "a"}]}, valid={"s": texts(2)})
    with pytest.raises(UserError, match=r"^config\.data\.train\.s: .*line 1: there is no field 'label'"):
        stores_of(config, "train")
    with pytest.raises(UserError, match=r"config\.data\.test: no data source is given"):
        stores_of(config, "test")
    config = make(train={"s": texts(2)}, data={"holdout_fraction": 1e-9})
    with pytest.raises(
        UserError, match=r"holdout_fraction: with holdout='hash' and fraction 1e-09, no examples of s .* are held out"
    ):
        stores_of(config, "valid")


def test_tokenizers_are_trained_on_the_texts_of_train_only(make):
    records = [{"text": f"t{i}", "pair": f"p{i}", "label": i} for i in range(40)]
    config = make("regression", train={"s": records}, options={"pair_field": "pair"}, data={"holdout_fraction": 0.3})
    read = {text for source in split_sources(config.data, "train") for text in task_of(config).texts(source, ())}
    store = stores_of(config, "train")["s"]
    assert read == {each.text for each in store.raw} | {each.pair for each in store.raw}
    assert 0 < len(read) < 80 and store.label_counts == {}


def test_the_context_of_several_questions_is_kept_once(make):
    qas = [("who", "ab  cd", [("cd", 4)]), ("what", "ab  cd", []), ("why", "x", [("x", 0)])]
    records = [
        {
            "id": q,
            "question": q,
            "context": c,
            "answers": {"text": [t for t, _ in a], "answer_start": [s for _, s in a]},
        }
        for q, c, a in qas
    ]
    config = make(
        "span_qa", train={"s": records}, valid={"s": records}, options={"label_field": ""}, data={"context_overlap": 4}
    )
    store = stores_of(config, "train")["s"]
    assert len(store.tokens.contexts) == 2 and store.tokens.context_of_X.tolist() == [0, 0, 1]
    assert store.counts == {
        "examples": 3,
        "documents": 3,
        "tokens": 3 + 4 + 3 + 6 + 1,
        "bytes": 17,
        "words": 6,
        "unknown": 0,
    }
    tokens, offsets = store.tokens.context(1)
    assert BYTES.decode(tokens) == "ab  cd" and offsets.tolist() == [[i, i + 1] for i in range(6)]
