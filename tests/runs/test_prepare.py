"""Splits, tokenizers and stores of a config, its fingerprint, and messages about unusable data."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from lm.config import Config, TokenizerConfig, defaults, source
from lm.data.reading.readers import Pair
from lm.data.storing import token_store
from lm.data.storing.splits import split_sources
from lm.data.tokenizing import build_tokenizer
from lm.errors import UserError
from lm.runs.prepare import cache_directory, check_moved, load_tokenizers, prepare, prepare_split
from lm.tasks import task_of

LINES = [f"line {i} of the text, which is {i * i} long" for i in range(400)]


@pytest.fixture
def config(tmp_path):
    """Returns a function that makes a config with LINES as its data, tokens that are bytes, and changed settings."""
    (tmp_path / "text.txt").write_text("\n".join(LINES) + "\n")

    def make(**changes):
        values = defaults()
        values.data.train.mine = source(path=str(tmp_path / "text.txt"), document="line")
        values.data.tokenizer.kind = "bytes"
        values.data.sequence_length = 32
        values.data.cache_dir = str(tmp_path / "cache")
        values.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
        return Config.from_dict(values.to_dict())

    return make


def documents(prepared, split, name="mine"):
    store = prepared.stores[split][name]
    return [prepared.tokenizer.decode(store.document(i)) for i in range(store.num_documents)]


def test_hash_holdout_is_a_partition_that_new_documents_do_not_change(config, tmp_path):
    prepared = prepare(config(), tmp_path / "run")
    train, valid = documents(prepared, "train"), documents(prepared, "valid")
    assert sorted(train + valid) == sorted(LINES)
    assert 20 <= len(valid) <= 60  # 40 expected, standard deviation 6
    assert train == [line for line in LINES if line not in set(valid)], "in order"
    (tmp_path / "text.txt").write_text("\n".join(["new", *LINES, *LINES]) + "\n")
    again = prepare(config(), tmp_path / "run2")
    assert set(documents(again, "valid")) - {"new"} == set(valid)
    assert not set(documents(again, "train")) & set(valid), "duplicates are on the same side"


def test_tail_holdout_cuts_at_a_character(config, tmp_path):
    text = "0123456789" * 11 + "abc"
    (tmp_path / "one.txt").write_text(text)
    one = source(path=str(tmp_path / "one.txt"))
    cfg = config(data__train={"one": one.to_dict()}, data__holdout="tail", data__holdout_fraction=0.1)
    prepared = prepare(cfg, tmp_path / "run")
    n = int(0.9 * len(text))
    assert documents(prepared, "train", "one") == [text[:n]]
    assert documents(prepared, "valid", "one") == [text[n:]]


def test_tail_holdout_takes_the_last_characters_of_many_documents(config, tmp_path):
    prepared = prepare(config(data__holdout="tail", data__holdout_fraction=0.25), tmp_path / "run")
    train, valid = "".join(documents(prepared, "train")), "".join(documents(prepared, "valid"))
    assert train + valid == "".join(LINES)
    assert len(train) == int(0.75 * len(train + valid))
    assert len(documents(prepared, "train")) + len(documents(prepared, "valid")) in (400, 401)


def test_named_validation_sources_leave_train_whole(config, tmp_path):
    (tmp_path / "valid.txt").write_text("validation text")
    valid = source(path=str(tmp_path / "valid.txt")).to_dict()
    cfg = config(data__valid={"a": valid, "b": valid}, data__test={"t": valid})
    prepared = prepare(cfg, tmp_path / "run")
    assert documents(prepared, "train") == LINES
    assert all(documents(prepared, "valid", name) == ["validation text"] for name in "ab")
    stores = prepare_split(prepared.config, prepared.tokenizers, "test")
    assert stores["t"].fingerprint == prepared.stores["valid"]["a"].fingerprint
    with pytest.raises(UserError, match="no test split"):
        prepare_split(config(), prepared.tokenizers, "test")


def test_tokenizer_is_trained_once_and_on_training_text_only(config, tmp_path):
    (tmp_path / "one.txt").write_text("a" * 90 + "b" * 10)
    one = {"one": source(path=str(tmp_path / "one.txt")).to_dict()}
    cfg = config(data__train=one, data__holdout="tail", data__tokenizer__kind="characters")
    prepared = prepare(cfg, tmp_path / "run")
    assert prepared.tokenizer.vocab_size == 4 + 1
    assert prepared.stores["valid"]["one"].manifest["counts"]["unknown"] == 10
    (tmp_path / "one.txt").write_text("b" * 50 + "a" * 50)
    again = prepare(cfg, tmp_path / "run")
    assert again.tokenizer.fingerprint == prepared.tokenizer.fingerprint, "loaded, not trained again"
    changed = {name for name in prepared.fingerprint if prepared.fingerprint[name] != again.fingerprint[name]}
    assert changed == {"train/one", "valid/one"}


def test_fingerprint_depends_on_everything_that_decides_the_batches(config, tmp_path):
    def fingerprint(run="run", **changes):
        return prepare(config(**changes), tmp_path / run).fingerprint

    base = fingerprint()
    assert set(base) == {"tokenizer", "order", "train/mine", "valid/mine"}
    assert fingerprint() == base
    assert fingerprint(model__num_layers=2) == base
    for change in ({"seed": 1}, {"train__batch_size": 8}, {"data__sequence_length": 16}):
        assert {k for k, v in fingerprint(**change).items() if v != base[k]} == {"order"}
    masked = {"objective__name": "masked", "model__family": "encoder", "data__tokenizer__extra_ids": 1}
    base = fingerprint("masked", **masked)
    for change in ({"objective__whole_words": True}, {"objective__next_sentence": True}):
        assert {k for k, v in fingerprint("masked", **masked, **change).items() if v != base[k]} == {"order"}


def test_fingerprint_depends_on_everything_that_decides_the_documents(config, tmp_path):
    def fingerprint(run="run", **changes):
        return prepare(config(**changes), tmp_path / run).fingerprint

    base = fingerprint()
    assert fingerprint(data__cleaning__max_chars=35)["train/mine"] != base["train/mine"]
    assert fingerprint("run2", data__tokenizer__kind="characters")["tokenizer"] != base["tokenizer"]


def test_vocab_size_is_derived_or_refused(config, tmp_path):
    assert prepare(config(), tmp_path / "a").config.model.vocab_size == 259
    assert prepare(config(model__vocab_multiple=128), tmp_path / "a").config.model.vocab_size == 384
    assert prepare(config(model__vocab_size=300), tmp_path / "a").config.model.vocab_size == 300
    with pytest.raises(UserError, match="258 is smaller than the tokenizer's vocabulary of 259"):
        prepare(config(model__vocab_size=258), tmp_path / "a")


def test_data_that_is_too_small_is_refused_with_its_size(config, tmp_path):
    (tmp_path / "tiny.txt").write_text("0123456789")
    tiny = {"tiny": source(path=str(tmp_path / "tiny.txt")).to_dict()}
    with pytest.raises(UserError, match=r"train\.tiny: .*tiny.txt has 11 tokens .* needs 33"):
        prepare(config(data__train=tiny, data__holdout="tail"), tmp_path / "a")
    with pytest.raises(
        UserError,
        match=r"fraction 0\.1, no documents of tiny .*held out|no documents of tiny .*left for train",
    ):
        prepare(config(data__train=tiny), tmp_path / "b")
    with pytest.raises(UserError, match=r"data\.train: no documents of tiny .*are left for train"):
        prepare(config(data__train=tiny, data__valid=tiny, data__cleaning__min_chars=50), tmp_path / "c")
    # The tokenizer is trained nevertheless, with a smaller vocabulary.
    with pytest.raises(UserError, match=r"train\.tiny: .*tiny\.txt has \d+ tokens for training, but one row needs 33"):
        prepare(config(data__train=tiny, data__valid=tiny, data__tokenizer__kind="sentencepiece"), tmp_path / "d")


def test_errors_name_the_data_source(config, tmp_path):
    broken = {"web": source(kind="jsonl", path=str(tmp_path / "text.txt")).to_dict()}
    with pytest.raises(UserError, match=r"config\.data\.train\.web: .*text\.txt, line 1: this is not valid JSON"):
        prepare(config(data__train=broken), tmp_path / "a")
    missing = {"web": source(path=str(tmp_path / "nothing")).to_dict()}
    with pytest.raises(UserError, match=r"config\.data\.valid\.web: .*no such file"):
        prepare(config(data__valid=missing), tmp_path / "a")


def test_training_source_of_weight_zero_is_not_read(config, tmp_path):
    cfg = config()
    off = dataclasses.replace(cfg.data.train["mine"], path="/no/such/file", weight=0.0)
    data = dataclasses.replace(cfg.data, train={**cfg.data.train, "off": off})
    prepared = prepare(dataclasses.replace(cfg, data=data), tmp_path / "run")
    assert set(prepared.stores["train"]) == set(prepared.stores["valid"]) == {"mine"}


def test_other_processes_wait_and_find_the_same_data(config, monkeypatch, tmp_path):
    events: list[str] = []
    monkeypatch.setattr("lm.runs.prepare.barrier", events.append)
    first = prepare(config(), tmp_path / "run")
    monkeypatch.setattr("lm.runs.prepare.is_first", lambda: False)
    second = prepare(config(), tmp_path / "run")
    assert events == ["tokenizer", "stores of train", "stores of valid"] * 2
    assert second.fingerprint == first.fingerprint


def test_cache_directory_comes_from_the_config_or_the_environment(config, monkeypatch, tmp_path):
    assert cache_directory(config()) == tmp_path / "cache"
    monkeypatch.setenv("LM_CACHE_DIR", str(tmp_path / "env"))
    assert cache_directory(config(data__cache_dir="")) == tmp_path / "env"
    monkeypatch.delenv("LM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory(config(data__cache_dir="")) == tmp_path / "xdg" / "lm"


def test_manifest_describes_the_store(config, tmp_path):
    prepared = prepare(config(data__cleaning__min_chars=40), tmp_path / "run")
    manifest = json.loads((prepared.stores["train"]["mine"].directory / "manifest.json").read_text())
    assert manifest["identity"]["tokenizer"] == prepared.tokenizer.fingerprint
    assert manifest["identity"]["cleaning"]["min_chars"] == 40
    own, other = (each["mine"].manifest["dropped"]["too_short"] for each in prepared.stores.values())
    (train,) = split_sources(prepared.config.data, "train")
    short = [line for line in LINES if len(line) < 40]
    assert own == manifest["dropped"]["too_short"] == sum(map(train.subset.holds, short)), "on its side of the holdout"
    assert own + other == len(short) and own > other > 0
    assert str(tmp_path) not in json.dumps(manifest["identity"]), "the content of the files decides, not their path"
    assert np.all(np.diff(prepared.stores["train"]["mine"].starts) >= 42)


@pytest.fixture
def pair_config(config, tmp_path):
    """Returns a function that makes a config of one file of pairs; every tenth pair also exists in upper case."""
    rows = [{"en": f" say  {i}", "de": [f" sage {i} ", f"sprich {i}"]} for i in range(300)]
    rows += [{"en": f"say {i}", "de": f"SAGE {i}"} for i in range(0, 300, 10)]
    rows += [{"en": "same", "de": "same"}, {"en": "say 5", "de": "sage 5"}, {"en": "", "de": "nichts"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = source(kind="jsonl", path=str(tmp_path / "pairs.jsonl"), field="en", target_field="de", prefix="> ")

    def make(**changes):
        return config(
            **{
                "data__train": {"mine": mine.to_dict()},
                "objective__name": "seq2seq",
                "model__family": "encoder_decoder",
                "data__cleaning__whitespace": "collapse",
                "data__cleaning__deduplicate": True,
                "data__pairs__drop_identical": True,
                **changes,
            }
        )

    make.mine = mine.to_dict()
    return make


def decoded(prepared, store):
    def side(store, tokenizer):
        return [tokenizer.decode(store.document(i)) for i in range(store.num_documents)]

    sides = side(store.source, prepared.tokenizers.source), side(store.target, prepared.tokenizer)
    return list(zip(*sides, strict=True))


def test_pairs_become_two_aligned_stores(pair_config, tmp_path):
    prepared = prepare(pair_config(), tmp_path / "run")
    assert prepared.tokenizers.source is prepared.tokenizer
    train, valid = (decoded(prepared, prepared.stores[split]["mine"]) for split in ("train", "valid"))
    every = [(f"> say {i}", f"sage {i}") for i in range(300)] + [(f"> say {i}", f"SAGE {i}") for i in range(0, 300, 10)]
    more = [("> same", "same"), ("> say 5", "sage 5"), ("> ", "nichts")]  # dropped from training
    assert set(train) | set(valid) <= {*every, *more}
    assert len(set(train)) == len(train) and not set(train) & set(more[::2])
    assert not {text for text, _ in train} & {text for text, _ in valid}, "equal sources are on the same side"
    assert len(train) + len([pair for pair in valid if pair not in more]) == len(every)
    assert 10 <= len(valid) <= 60
    store = prepared.stores["train"]["mine"]
    assert store.target.num_documents == len(train)
    for side in (store.source, store.target):
        assert sum(side.manifest["dropped"].values()) == len(every) + len(more) - len(train) - len(valid)
    assert store.source.manifest["label"] == "config.data.train.mine (train side), sources"
    again = prepare_split(prepared.config, prepared.tokenizers, "train")["mine"]
    assert again.fingerprint == store.fingerprint
    assert pickle.loads(pickle.dumps(store)).fingerprint == store.fingerprint


def test_evaluation_has_all_pairs_and_their_references_uncleaned(pair_config, tmp_path):
    splits = {"data__valid": {"v": pair_config.mine}, "data__test": {"t": {**pair_config.mine, "prefix": ""}}}
    cfg = pair_config(**splits, eval__generation__metrics=("bleu",))
    prepared = prepare(cfg, tmp_path / "run")
    assert prepared.stores["train"]["mine"].target.num_documents == 330
    assert prepared.stores["valid"]["v"].target.num_documents == 333
    for split, name, prefix in (("valid", "v", "> "), ("test", "t", "")):
        store = prepare_split(prepared.config, prepared.tokenizers, split)[name]
        found = task_of(cfg).references(cfg, split)[name]
        *texts, blank = (text for text, _ in decoded(prepared, store))
        assert [pair.source for pair in found[:-1]] == texts
        assert found[7] == Pair(f"{prefix}say 7", (" sage 7 ", "sprich 7"))
        assert blank == prefix and found[-1] == Pair("", ("nichts",)), "a blank source is not decoded"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_references_of_a_holdout_match_its_store(pair_config, tmp_path, split):
    prepared = prepare(pair_config(eval__generation__metrics=("bleu",)), tmp_path / "run")
    found = task_of(prepared.config).references(prepared.config, split)["mine"]
    want = decoded(prepared, prepared.stores[split]["mine"])
    assert [(pair.source or "> ", " ".join(pair.target.split())) for pair in found] == want
    assert any(pair.target != " ".join(pair.target.split()) for pair in found), "references are not cleaned"


def test_each_side_may_have_its_own_tokenizer(pair_config, tmp_path):
    both = prepare(pair_config(data__tokenizer__kind="characters"), tmp_path / "both")
    assert set("> saygeSAGE") <= set(both.tokenizer.vocabulary), "trained on both sides, prefix included"
    assert "k" not in both.tokenizer.vocabulary and both.config.model.source_vocab_size == 0
    apart = {"data__separate_vocabularies": True, "model__share_embeddings": False}
    cfg = pair_config(data__tokenizer__kind="characters", **apart, model__vocab_multiple=32)
    prepared = prepare(cfg, tmp_path / "run")
    assert set("SAGE") <= set(prepared.tokenizer.vocabulary) and not set(">y") & set(prepared.tokenizer.vocabulary)
    assert ">" in prepared.tokenizers.source.vocabulary and "S" not in prepared.tokenizers.source.vocabulary
    assert prepared.config.model.vocab_size == prepared.config.model.source_vocab_size == 32
    assert set(prepared.fingerprint) - set(both.fingerprint) == {"tokenizer_source"}
    assert decoded(prepared, prepared.stores["train"]["mine"]) == decoded(both, both.stores["train"]["mine"])
    loaded = load_tokenizers(cfg, tmp_path / "run")
    assert [each.fingerprint for each in (loaded.target, loaded.source)] == [
        prepared.tokenizer.fingerprint,
        prepared.tokenizers.source.fingerprint,
    ]
    with pytest.raises(UserError, match="source_vocab_size: 5 is smaller"):
        prepare(dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, source_vocab_size=5)), tmp_path / "run")
    with pytest.raises(UserError, match=r"separate_vocabularies: .*kind=bytes"):
        prepare(pair_config(**apart), tmp_path / "bytes")
    (tmp_path / "run" / "tokenizer_source" / "characters.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_source: the directory contains no tokenizer"):
        prepare(cfg, tmp_path / "run")


def test_fingerprint_of_pairs_depends_on_everything_that_decides_the_batches(pair_config, tmp_path):
    def changed(**changes):
        found = prepare(pair_config(**changes), tmp_path / "run").fingerprint
        return {name for name in base if found[name] != base[name]}

    base = prepare(pair_config(), tmp_path / "run").fingerprint
    assert changed() == changed(model__num_layers=2) == set()
    assert changed(data__source_length=16) == changed(data__pairs__overlong="drop") == {"order"}
    assert changed(data__pairs__max_ratio=1.15) == {"train/mine"}
    assert changed(data__cleaning__deduplicate=False) == {"train/mine"}
    assert changed(data__train={"mine": {**pair_config.mine, "prefix": ""}}) == {"train/mine", "valid/mine"}


def test_bad_pairs_are_refused_with_the_name_of_their_source(pair_config, tmp_path):
    def refuse(message, **changes):
        with pytest.raises(UserError, match=message):
            prepare(pair_config(**changes), tmp_path / "run")

    refuse(r"pairs\.source_script: 'latn' is not the beginning of any", data__pairs__source_script="latn")
    broken = {**pair_config.mine, "target_field": "fr"}
    refuse(r"config\.data\.train\.mine: .*line 1: there is no field 'fr'", data__train={"mine": broken})
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("1\n")
    lines = source(path=str(tmp_path / "a"), target_path=str(tmp_path / "b"), document="line").to_dict()
    refuse(r"config\.data\.train\.mine: .*a has 2 lines, but .*b has 1; ", data__train={"mine": lines})
    both = {"mine": pair_config.mine, "other": {**lines, "target_path": str(tmp_path / "a")}}
    refuse(r"train\.other: .*has no examples for training", data__train=both, data__valid=both)
    refuse(
        r"config\.data\.train: no pairs of mine .*are left for train",
        data__valid={"v": both["other"]},
        data__train={"mine": both["other"]},
    )


def test_files_that_change_between_the_two_reads_are_refused(pair_config, tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"

    def build(cache, identity, label, *rest):
        store = open_or_build(cache, identity, label, *rest)
        if identity["of"] == "source":
            path.write_text(path.read_text() + '{"en": "late", "de": "neu"}\n')
        return store

    open_or_build = token_store.open_or_build
    monkeypatch.setattr(token_store, "open_or_build", build)
    with pytest.raises(UserError, match=r"mine: 330 sources but 331 targets were read"):
        prepare(pair_config(data__valid={"v": pair_config.mine}), tmp_path / "run")


def test_tokenizer_file_may_move_but_not_change(config, tmp_path):
    for name, texts in (("one", LINES), ("other", [line.upper() for line in LINES])):
        build_tokenizer(TokenizerConfig(vocab_size=320), texts).save(tmp_path / name)
    shutil.copytree(tmp_path / "one", tmp_path / "moved")

    def prepared(name):
        path = str(tmp_path / name / "sentencepiece.model")
        changes = {"data__tokenizer__kind": "sentencepiece", "data__tokenizer__path": path}
        return prepare(config(**changes), tmp_path / "run")  # loads the tokenizer that is already there

    lines = ["data.tokenizer.path: 'a' -> 'b'"]
    for name in ("one", "moved"):
        check_moved(lines, prepared(name))
    check_moved([], prepared("other"))
    with pytest.raises(UserError, match=r"config\.data\.tokenizer\.path: .* is not the tokenizer of this run"):
        check_moved(lines, prepared("other"))
