"""Evaluation examples that are also used for training, counted for every kind of data and compared with brute force."""

import json

import numpy as np
import pytest

from lm.config import Config, source
from lm.data.storing.overlap import Hashes, Overlap, combined, files_read_differently
from lm.data.storing.splits import text_hash
from lm.runs.prepare import prepare


def squad(*questions):
    """Returns SQuAD's JSON with a paragraph of its own for each question, whose answer is its first word."""
    paragraphs = [
        {
            "context": f"{q} it is",
            "qas": [{"id": f"{i}-{q}", "question": q, "answers": [{"text": q, "answer_start": 0}]}],
        }
        for i, q in enumerate(questions)
    ]
    return json.dumps({"data": [{"title": f"t{i}", "paragraphs": [each]} for i, each in enumerate(paragraphs)]})


def table(*rows):
    return "one\tother\n" + "".join("\t".join(row) + "\n" for row in rows)


def sentences(*rows):
    return "\n".join("".join(f"{word}\t{tag}\n" for word, tag in row) for row in rows)


def choices(*questions):
    return "".join(json.dumps({"one": q, "two": ["yes", "no"], "other": 0}) + "\n" for q in questions)


TABLE = {"kind": "tsv", "field": "one"}
# objective: family, settings of the sources, content of train and of valid, examples in both, inputs in both
CASES = {
    "causal": ("decoder", {"document": "line"}, "a b c d e f g h\ni\nj\n", "i\nk\ni\n", (3, 2, 0)),
    "masked": ("encoder", {"document": "paragraph"}, "a b\nc\n\nd e\n", "a b\n\nd e\n", (2, 1, 0)),
    "seq2seq": (
        "encoder_decoder",
        {**TABLE, "target_field": "other", "prefix": "say: "},
        table(("ab", "cd"), ("ef", "gh"), ("ij", "kl")),
        table(("ab", "cd"), ("ef", "no"), ("xy", "kl"), ("ab", "cd")),
        (4, 2, 1),
    ),
    "contrastive": (
        "encoder",
        {**TABLE, "target_field": "other"},
        table(("ab", "cd"), ("ef", "gh")),
        table(("ef", "gh"), ("cd", "ab")),
        (2, 1, 0),
    ),
    "classification": (
        "encoder",
        {**TABLE, "label_field": "other"},
        table(("good", "pos"), ("bad", "neg"), ("fine", "pos")),
        table(("good", "pos"), ("bad", "pos"), ("other", "neg")),
        (3, 1, 1),
    ),
    "regression": (
        "encoder",
        {**TABLE, "label_field": "other"},
        table(("good", "1.5"), ("bad", "2")),
        table(("good", "1.5"), ("bad", "2.5")),
        (2, 1, 1),
    ),
    "tagging": (
        "encoder",
        {"kind": "conll"},
        sentences([("Berlin", "B-x"), ("is", "O")], [("here", "O")]),
        sentences([("Berlin", "B-x"), ("is", "O")], [("here", "B-x")], [("is", "O")]),
        (3, 1, 1),
    ),
    "span_qa": ("encoder", {"kind": "squad"}, squad("who", "what"), squad("what", "when"), (2, 1, 0)),
    "multiple_choice": (
        "encoder",
        {"kind": "jsonl", "field": "one", "pair_field": "two", "label_field": "other"},
        choices("who", "what"),
        choices("who", "when", "where"),
        (3, 1, 0),
    ),
}


def config_of(folder, objective, train, valid):
    family = CASES[objective][0]
    return Config.from_dict(
        {
            "data": {
                "train": train,
                "valid": valid,
                "tokenizer": {"kind": "bytes", "extra_ids": 1},
                "sequence_length": 16 if objective == "causal" else 64,
                "context_overlap": 8 if objective == "span_qa" else 64,
                "cache_dir": str(folder / "cache"),
            },
            "model": {"family": family, "num_heads": 6},
            "objective": {"name": objective},
            "checkpoint": {"best_metric": "valid/loss"},
        }
    )


@pytest.mark.parametrize("objective", CASES)
def test_examples_that_are_also_trained_on_are_counted(objective, tmp_path):
    _, settings, train, valid, (total, same, same_input) = CASES[objective]
    sources = {}
    for name, content in (("train", train), ("valid", valid)):
        (tmp_path / name).write_text(content)
        sources[name] = {"mine": {**source(**settings).to_dict(), "path": str(tmp_path / name)}}
    prepared = prepare(config_of(tmp_path, objective, **sources), tmp_path / "run")
    assert prepared.trained.overlap(prepared.stores["valid"]) == Overlap(total, same, same_input)
    (line,) = prepared.overlap_lines()
    assert f"that are also used for training: {same} of {total} (exact duplicates)" in line
    assert ("the same input" in line) == bool(same_input)


def test_a_validation_file_inside_the_training_glob_is_noticed(tmp_path):
    for number, text in enumerate(["first text", "second text\nof two lines", "third text"]):
        (tmp_path / f"{number}.txt").write_text(text)
    every, one = ({"kind": "text", "path": str(tmp_path / name)} for name in ("*.txt", "1.txt"))
    prepared = prepare(config_of(tmp_path, "causal", {"all": every}, {"one": one}), tmp_path / "run")
    assert prepared.overlap_lines() == ["valid documents that are also used for training: 1 of 1 (exact duplicates)"]
    # Other documents of the same file have other hashes.
    prepared = prepare(
        config_of(tmp_path, "causal", {"all": every}, {"one": {**one, "document": "line"}}), tmp_path / "r"
    )
    (line,) = prepared.overlap_lines()
    assert line.startswith("config.data.valid.one and config.data.train.all read ") and "1.txt, but extract" in line
    # Training data need not be on the machine that evaluates.
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert files_read_differently(prepared.config.data, "valid") == []


def test_held_out_examples_are_never_trained_on(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i % 50}\n" for i in range(200)))
    whole = {"kind": "text", "path": str(tmp_path / "a.txt"), "document": "line"}
    prepared = prepare(config_of(tmp_path, "causal", {"a": whole}, {}), tmp_path / "run")
    assert prepared.overlap_lines() == []
    overlap = prepared.trained.overlap(prepared.stores["valid"])
    assert overlap.total == prepared.stores["valid"]["a"].num_documents and not overlap
    parts = {name: {**whole, "part": part} for name, part in (("train", (0.0, 0.5)), ("valid", (0.5, 1.0)))}
    prepared = prepare(config_of(tmp_path, "causal", *({"a": each} for each in parts.values())), tmp_path / "other")
    assert prepared.overlap_lines() == []


def test_hashes_are_saved_and_read_again(tmp_path):
    hashes = Hashes(np.array([3, 5], np.uint64), np.array([2**64 - 1], np.uint64))
    hashes.save(tmp_path / "hashes.npz")
    loaded = Hashes.load(tmp_path / "hashes.npz")
    assert loaded.inputs.tolist() == [3, 5] and loaded.examples.tolist() == [2**64 - 1]
    assert Hashes.load(tmp_path / "missing.npz") is None
    for content in (b"", b"PK\x03\x04damaged", b"\x93NUMPY"):
        (tmp_path / "hashes.npz").write_bytes(content)
        assert Hashes.load(tmp_path / "hashes.npz") is None


def test_the_hash_of_a_pair_depends_on_the_order_of_its_sides():
    one, other = (np.array([text_hash(text)], np.uint64) for text in ("a", "b"))
    assert combined(one, other) != combined(other, one) and combined(one, one) != combined(other, other)
    assert len({text_hash("a"), text_hash("a", "b"), text_hash("b", "a"), text_hash("a", ""), text_hash("")}) == 5
