"""From a config to labelled examples: what is in which split, cleaned how, with which labels; tokens of words."""

import dataclasses
import io
import itertools
import json

import pytest
import sentencepiece

from lm.config import Config
from lm.data.examples.label_encoding import Ragged, WordTokens, trimmed
from lm.data.reading.labelled import Labelled, Tagged
from lm.data.storing import label_store
from lm.data.tokenizing import tokenizers
from lm.data.tokenizing.tokenizers import KINDS, ByteTokenizer, CharacterTokenizer, WordTokenizer
from lm.errors import UserError

BYTES = ByteTokenizer()


@pytest.fixture
def make(tmp_path):
    """A config whose sources are files made of records: splits by name, or one list for train."""

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


def test_splits_are_those_that_are_named(make):
    config = make(train={"one": texts(5), "two": texts(3)}, valid={"v": texts(2)}, test={"t": texts(4)})
    found = {split: label_store.build(config, split, BYTES) for split in ("train", "valid", "test")}
    sizes = {split: {name: len(store.raw) for name, store in stores.items()} for split, stores in found.items()}
    assert sizes == {"train": {"one": 5, "two": 3}, "valid": {"v": 2}, "test": {"t": 4}}
    store = found["train"]["one"]
    assert store.name == "one" and store.raw[3] == Labelled("text 3", None, "b")
    assert [BYTES.decode(store.tokens.texts[i]) for i in range(5)] == [each.text for each in store.raw]
    assert store.counts == {"examples": 5, "tokens": 30, "bytes": 30, "words": 10, "unknown": 0}
    assert store.label_counts == {"a": 5, "b": 3}, "of all sources of the split"
    off = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train={**config.data.train, "two": dataclasses.replace(config.data.train["two"], weight=0.0)}
        ),
    )
    assert list(label_store.build(off, "train", BYTES)) == ["one"]


@pytest.mark.parametrize("part", [[0.0, 1.0], [0.5, 1.0]])
def test_without_validation_sources_a_share_of_each_part_is_held_out(make, part):
    config = make(train={"one": texts(300)}, options={"part": part}, data={"holdout_fraction": 0.2})
    train, valid = (label_store.build(config, split, BYTES)["one"] for split in ("train", "valid"))
    kept = {each.text for each in train.raw}
    held = {each.text for each in valid.raw}
    assert not kept & held and abs(len(held) / len(kept | held) - 0.2) < 0.08
    alone = make(train={"one": texts(300)}, valid={"one": texts(2)}, options={"part": part})
    whole = label_store.build(alone, "train", BYTES)["one"]
    assert {each.text for each in whole.raw} == kept | held
    assert len({train.fingerprint, valid.fingerprint, whole.fingerprint}) == 3


def test_folds_turn_every_split(make):
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
        stores = {split: label_store.build(config, split, BYTES)["x"] for split in parts}
        return {split: {each.text for each in store.raw} for split, store in stores.items()}, stores["test"].fingerprint

    folds, fingerprints = zip(*map(of, range(5)), strict=True)
    everything = {f"text {i}" for i in range(200)}
    for fold in folds:
        assert fold["train"] | fold["valid"] | fold["test"] == everything
        assert sum(map(len, fold.values())) == 200
    assert set().union(*(fold["test"] for fold in folds)) == everything
    assert sum(len(fold["test"]) for fold in folds) == 200
    assert folds[1]["test"] != folds[0]["test"] and len(set(fingerprints)) == 5


def test_texts_are_cleaned_and_training_texts_dropped(make):
    records = [
        {"text": t, "pair": p, "label": "ab"[i % 2]}
        for i, (t, p) in enumerate([(" <b>x</b>  y ", "p"), ("x y", "p"), ("", ""), ("z", "q")])
    ]
    cleaning = {"strip_html": True, "whitespace": "collapse", "min_chars": 2, "deduplicate": True}
    config = make(train={"s": records}, valid={"s": records}, cleaning=cleaning, options={"pair_field": "pair"})
    train, valid = (label_store.build(config, split, BYTES)["s"] for split in ("train", "valid"))
    assert [(each.text, each.pair) for each in train.raw] == [("x y", "p"), ("z", "q")]
    assert train.notes == ["1 texts are left out: too_short", "1 texts are left out: duplicate"]
    assert [(each.text, each.pair) for each in valid.raw] == [("x y", "p"), ("x y", "p"), ("", ""), ("z", "q")]
    assert valid.notes == [] and BYTES.decode(valid.tokens.pairs[3]) == "q"


def test_fingerprints_tell_what_decides_the_tokens(make):
    records = {"train": {"s": texts(6)}, "valid": {"s": texts(6)}}
    config = make(**records)
    first = label_store.build(config, "train", BYTES)["s"].fingerprint
    assert label_store.build(config, "train", BYTES)["s"].fingerprint == first
    others = [
        label_store.build(config, "valid", BYTES)["s"],
        label_store.build(config, "train", CharacterTokenizer("tex 0123456789"))["s"],
        label_store.build(make(**records, cleaning={"whitespace": "trim"}), "train", BYTES)["s"],
        label_store.build(make(**records, options={"part": [0.0, 0.99]}), "train", BYTES)["s"],
    ]
    assert len({first, *(each.fingerprint for each in others)}) == 5


def test_labels_are_those_of_train_in_order(make):
    def labels(*values):
        records = [{"text": "same", "label": value} for value in values]
        return label_store.labels_of(
            label_store.build(make(train={"s": records}, valid={"s": records}), "train", BYTES)
        )

    assert labels("pos", "neg", "pos") == ("neg", "pos")
    assert labels(10, 9, -1) == ("-1", "9", "10"), "numbers by value"
    assert labels(10, "9x") == ("10", "9x")
    with pytest.raises(UserError, match=r"config\.data\.train: all 2 labels are 'a'"):
        labels("a", "a")
    with pytest.raises(UserError, match=r"each of the 11 examples has a label of its own"):
        labels(*(f"text {i}" for i in range(11)))


def test_an_unknown_label_is_told_with_its_example(make):
    splits = {"train": {"s": texts(4)}, "valid": {"v": [*texts(3), {"text": "odd one", "label": "c"}]}}
    config = make(**splits, data={"labels": ["a", "b"]})
    label_store.build(config, "train", BYTES)
    with pytest.raises(UserError, match=r"config\.data\.valid\.v: label 'c' is not one of a, b .* 'odd one'"):
        label_store.build(config, "valid", BYTES)
    with pytest.raises(UserError, match=r"config\.data\.train\.s: label 'b' is not one of a, c"):
        label_store.build(make(**splits, data={"labels": ["a", "c"]}), "train", BYTES)


def test_errors_name_the_source(make):
    config = make(train={"s": [{"text": "a"}]}, valid={"s": texts(2)})
    with pytest.raises(UserError, match=r"^config\.data\.train\.s: .*line 1: there is no field 'label'"):
        label_store.build(config, "train", BYTES)
    with pytest.raises(UserError, match=r"config\.data\.test: names no source"):
        label_store.build(config, "test", BYTES)
    config = make(train={"s": texts(2)}, data={"holdout_fraction": 1e-9})
    with pytest.raises(
        UserError, match=r"holdout_fraction: with 1e-09 no example of config\.data\.train\.s goes to valid"
    ):
        label_store.build(config, "valid", BYTES)


def test_training_texts_are_those_of_train_alone(make):
    records = [{"text": f"t{i}", "pair": f"p{i}", "label": i} for i in range(40)]
    config = make("regression", train={"s": records}, options={"pair_field": "pair"}, data={"holdout_fraction": 0.3})
    read = set(label_store.training_texts(config))
    store = label_store.build(config, "train", BYTES)["s"]
    assert read == {each.text for each in store.raw} | {each.pair for each in store.raw}
    assert 0 < len(read) < 80 and label_store.labels_of({"s": store}) == ()


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
    store = label_store.build(config, "train", BYTES)["s"]
    assert len(store.tokens.contexts) == 2 and store.tokens.context_of_E.tolist() == [0, 0, 1]
    assert store.counts == {"examples": 3, "tokens": 3 + 4 + 3 + 6 + 1, "bytes": 17, "words": 6, "unknown": 0}
    tokens, offsets = store.tokens.context(1)
    assert BYTES.decode(tokens) == "ab  cd" and offsets.tolist() == [[i, i + 1] for i in range(6)]


def test_ragged_rows_come_back():
    rows = [[1, 2], [], [3], []]
    ragged = Ragged.of(rows)
    assert [row.tolist() for row in map(ragged.__getitem__, range(4))] == rows
    assert ragged.lengths.tolist() == [2, 0, 1, 0] and len(ragged) == 4
    assert len(Ragged.of([])) == 0 and Ragged.of([[]])[0].tolist() == []


def test_white_space_is_no_part_of_a_place():
    assert [trimmed("a  bc \n", *span) for span in ((0, 1), (1, 4), (3, 7), (1, 3), (2, 2))] == [
        (0, 1),
        (3, 4),
        (3, 5),
        (1, 3),
        (2, 2),
    ]


def encoded(tokenizer, *words):
    tokens = WordTokens.encode([Tagged(words, ("O",) * len(words))], tokenizer)
    return [tokens.words[i].tolist() for i in range(len(words))], tokens.firsts_W.tolist()


def test_words_have_the_tokens_they_have_in_a_text():
    sentences = ["the cat sat on the mat and the dog ran 中文字\n"] * 20 + [
        " ".join(f"w{i}" for i in range(150)) + " quick brown zebras jumped over lazy foxes"
    ]
    for algorithm in ("unigram", "bpe"):
        config = dataclasses.replace(Config().data.tokenizer, vocab_size=310, algorithm=algorithm)
        tokenizer = tokenizers.build_tokenizer(config, sentences)
        words = ("the", "cat", "zebra", "😀", "dog", "w12")
        parts, firsts = encoded(tokenizer, *words)
        assert list(itertools.chain(*parts)) == tokenizer.encode(" ".join(words))
        for word, part, first in zip(words, parts, firsts, strict=True):
            assert tokenizer.decode(part).strip(" ") == word
            assert tokenizer.decode(part[:first]).strip(" ") == "" and tokenizer.decode(part[: first + 1]).strip(" ")


def test_the_first_token_of_a_word_is_no_space():
    parts, firsts = encoded(BYTES, "ab", "c", "é")
    assert [BYTES.decode(part) for part in parts] == ["ab", " c", " é"] and firsts == [0, 1, 1]
    parts, firsts = encoded(WordTokenizer(["ab", "c"]), "ab", "c", "new york")
    assert parts == [[4], [5], [3, 3]] and firsts == [0, 0, 0]


def test_ideographs_have_no_space_between_them_and_a_word_may_have_no_token():
    parts, firsts = encoded(BYTES, "中", "文", "a", "字", "。", "")
    assert [BYTES.decode(part) for part in parts] == ["中", "文", " a", " 字", "。", " "]
    assert firsts == [0, 0, 1, 1, 0, -1]


def test_a_tokenizer_that_puts_the_space_itself():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 9),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = KINDS["sentencepiece"]._from_content(model.getvalue(), {})
    parts, _ = encoded(tokenizer, "the", "cat")
    assert list(itertools.chain(*parts)) == tokenizer.encode("the cat")
