"""Multiple choice from JSONL to the table of results: what is read, the rows, the loss, training and its outputs."""

import json
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Output
from lm.config import Config, ObjectiveConfig, SourceConfig
from lm.data.packing.rows import EvalRows
from lm.data.reading import open_reader
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.errors import UserError
from lm.tasks import TASKS
from lm.tasks.multiple_choice import Choice, ChoiceExamples, ChoiceReader, ChoiceTokens, Chosen
from tests.conftest import Tiny
from tests.run_helpers import assert_same_run, train_here

TASK, BYTES = TASKS["multiple_choice"], ByteTokenizer()
BOS, EOS = BYTES.bos_id, BYTES.eos_id


def read(tmp_path, record, **options):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(record) + "\n")
    options = {"field": "ask", "pair_field": "of", "label_field": "is", **options}
    return list(open_reader(SourceConfig(kind="jsonl", path=str(path), **options), ChoiceReader).iterate())


@pytest.mark.parametrize(
    ("answer", "options", "right"),
    [
        (2, {}, 2),
        ("2", {}, 2),
        ("red ", {}, 0),
        ("B", {"label_names": ("A", "B", "C")}, 1),
        ("2", {"label_names": ("1", "2", "3")}, 1),
    ],
)
def test_answer_is_an_index_a_candidate_or_a_name(tmp_path, answer, options, right):
    record = {"ask": "colour?", "of": ["red", "green", "blue"], "is": answer}
    assert read(tmp_path, record, **options) == [Choice("colour?", ("red", "green", "blue"), right)]


def test_fields_may_be_nested_and_templates(tmp_path):
    record = {"text": "It rains.", "ask": "wet?", "of": {"text": ["no", "yes"]}, "is": "yes"}
    (found,) = read(tmp_path, record, field="{text} {ask}", pair_field="of.text")
    assert found == Choice("It rains. wet?", ("no", "yes"), 1)


@pytest.mark.parametrize(
    ("candidates", "answer", "options", "message"),
    [
        (["1", "2", "3"], "2", {}, "field 'is' is '2', which does not identify one of the 3 candidates"),
        (["a", "b"], 2, {}, "field 'is' is 2, which does not identify one"),
        (["a", "b"], True, {}, "field 'is' is True, which does not identify one"),
        (["a", "a"], "a", {}, "field 'is' is 'a', which does not identify one"),
        (["a", "b"], "D", {"label_names": ("A", "B", "C", "D")}, "field 'is' is 'D', which does not identify one"),
        (["a"], 0, {}, "line 1: field 'of' must hold at least two candidates, not 1"),
        ("ab", 0, {}, "field 'of' should hold a list, but holds the str 'ab'"),
    ],
)
def test_unclear_answers_are_refused(tmp_path, candidates, answer, options, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"ask": "?", "of": candidates, "is": answer}, **options)


def examples_of(raw, length=40, pooling="first"):
    store = ExampleStore("s", raw, ChoiceTokens.encode(raw, BYTES), "", {"examples": len(raw), "unknown": 0}, {}, [])
    data, model = SimpleNamespace(sequence_length=length), SimpleNamespace(pooling=pooling)
    config = SimpleNamespace(data=data, objective=SimpleNamespace(name=TASK.name), model=model)
    return ChoiceExamples(store, config, BYTES, train=False)


def segments_of(example):
    """Returns (tokens, types, targets, weights) of each segment."""
    arrays = example.tokens_T, example.types_T, example.targets_T, example.weights_T
    return list(zip(*(np.split(each, np.cumsum(example.segments)[:-1]) for each in arrays), strict=True))


def spelled(text):
    return [byte + 3 for byte in text.encode()]


@pytest.mark.parametrize(("pooling", "at"), [("first", 0), ("last", -1)])
def test_each_candidate_is_a_segment_with_the_question(pooling, at):
    examples = examples_of([Choice("ab?", ("c", "de"), 1)], pooling=pooling)
    first, second = segments_of(examples.make(0, 0))
    assert first[0].tolist() == [BOS, *spelled("ab?"), EOS, *spelled("c"), EOS]
    assert second[0].tolist() == [BOS, *spelled("ab?"), EOS, *spelled("de"), EOS]
    assert first[1].tolist() == [0, 0, 0, 0, 0, 1, 1] and second[1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert examples.sizes(0)[0].tolist() == [7 + 8] and examples.num_targets() == 1 and examples.notes == []
    assert (first[2][at], second[2][at]) == (3, 1) and (first[3][at], second[3][at]) == (0, 1)
    assert [int(each.sum()) for _, _, *both in (first, second) for each in both] == [3, 0, 1, 1]
    assert examples.label_indices(0).tolist() == ([0, 7] if pooling == "first" else [6, 14])


def test_long_questions_lose_their_beginning_and_long_candidates_their_end():
    examples = examples_of([Choice("0123456789", ("abcdefgh", "ij"), 0), Choice("q", ("r", "s"), 0)], length=24)
    (first, *_), (second, *_) = segments_of(examples.make(0, 0))
    assert first.tolist() == [BOS, *spelled("56789"), EOS, *spelled("abcd"), EOS]
    assert second.tolist() == [BOS, *spelled("56789"), EOS, *spelled("ij"), EOS]
    assert examples.notes == ["1 of 2 questions are truncated (data.sequence_length=24)"]
    with pytest.raises(UserError, match=r"too few for a question with 4 candidates; set it to 32 or more"):
        examples_of([Choice("0123456789", ("a", "b", "c", "d"), 0)], length=24)


@pytest.mark.parametrize("pooling", ["first", "last"])
def test_loss_is_the_softmax_over_the_candidates_of_each_question(pooling):
    raw = [Choice("a", ("b", "c", "dd"), 2), Choice("ee", ("f", "g"), 0), Choice("h", ("i", "j", "k", "l"), 1)]
    examples = examples_of(raw, length=64, pooling=pooling)
    rows = EvalRows(examples, TASK.layout(SimpleNamespace(data=SimpleNamespace(sequence_length=64), model=MODEL)))
    batch = rows.rows(range(rows.num_rows))
    logits = np.random.default_rng(0).normal(size=(*batch.tokens.shape, 1)).astype(np.float32)
    sums = TASK.loss(Output(jnp.asarray(logits)), jax.tree.map(jnp.asarray, batch), ObjectiveConfig())
    nll, correct, scores = 0.0, 0, []
    for row in range(rows.num_rows):
        for number, begin in rows.starts(row):
            scores.append(logits[row, begin + examples.label_indices(number), 0].astype(np.float64))
            nll += np.log(np.exp(scores[-1]).sum()) - scores[-1][raw[number].right]
            correct += int(scores[-1].argmax() == raw[number].right)
    assert len(scores) == 3 and rows.num_rows < 3, "questions share a row"
    assert float(sums.loss) == pytest.approx(nll, rel=1e-5) and float(sums.weight) == 3
    assert float(sums.correct) == correct == 3 * Chosen(raw, scores).metrics()["accuracy"]


MODEL = SimpleNamespace(token_types=0)


def test_predictions_are_written_and_diverged_models_have_no_accuracy(tmp_path):
    raw = [Choice("a?", ("b", "c"), 1), Choice("d?", ("e", "f", "g"), 0)]
    chosen = Chosen(raw, [np.array([0.5, 2.0]), np.array([0.0, 1.0, np.inf])])
    lines = [json.loads(line) for line in chosen.write(tmp_path, "predictions")[0].read_text().splitlines()]
    assert lines[0] == {"question": "a?", "candidates": ["b", "c"], "label": 1, "prediction": 1, "scores": [0.5, 2.0]}
    assert lines[1]["scores"] == [0.0, 1.0, None] and np.isnan(chosen.metrics()["accuracy"])
    assert chosen.metrics(np.array([0, 0])) == {"accuracy": 1.0} and list(chosen.preview(0).values()) == [
        "a?",
        "c",
        "c",
    ]
    assert chosen.joined([chosen]).raw == raw * 2


CONFIG = """
from lm.config import defaults, source


def get_config(path):
    config = defaults()
    for split, file in (("train", path), ("valid", path.replace("train", "valid"))):
        config.data[split].letters = source(
            kind="jsonl", path=file, field="ask", pair_field="of", label_field="is", label_names=("A", "B", "C")
        )
    config.data.tokenizer.kind = "bytes"
    config.data.sequence_length = 48
    config.model.update(family="encoder", num_layers=1, d_model=32, num_heads=2, scan_layers=False)
    config.objective.name = "multiple_choice"
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(num_steps=60, batch_size=16)
    config.checkpoint.update(every_steps=30, best_metric="valid/accuracy")
    config.eval.update(every_steps=30)
    config.log.update(every_steps=1, tensorboard=False)
    return config
"""


@pytest.fixture(scope="module")
def letters(tiny, tmp_path_factory) -> Tiny:
    """Which of two or three words holds a z?"""
    folder, draw = tmp_path_factory.mktemp("letters"), random.Random(0)
    for split, count in (("train", 400), ("valid", 60)):
        lines = []
        for number in range(count):
            words, right = ["".join(draw.choices("abc", k=3)) for _ in range(draw.choice((2, 3)))], draw.randrange(2)
            words[right] = f"{draw.choice('abc')}z"
            lines.append(json.dumps({"ask": f"z? {number}", "of": words, "is": "ABC"[right]}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "letters.py").write_text(CONFIG)
    return Tiny(folder / "train.jsonl", folder / "letters.py", tiny.cache)


@pytest.fixture(scope="module")
def trained(letters, tmp_path_factory):
    root = tmp_path_factory.mktemp("choice") / "run"
    assert train_here(letters, root) == 0
    return root


@pytest.mark.exhaustive
def test_training_learns_the_choice_and_evaluation_prints_it(trained, call):
    results = json.loads((trained / "eval/60/results.json").read_text())["metrics"]
    assert results["accuracy"] > 0.9 and results["task_loss"] < 0.4
    outcome = call("eval.py", f"--workdir={trained}", "--step=latest")
    assert outcome.status == 0 and "accuracy" in outcome.stdout, outcome.stderr
    lines = [json.loads(line) for line in (trained / "eval/60/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 60 and {len(line["scores"]) for line in lines} == {2, 3}
    assert np.mean([line["label"] == line["prediction"] for line in lines]) == pytest.approx(results["accuracy"])


@pytest.mark.exhaustive
def test_stopped_run_continues_to_the_bit(letters, trained, tmp_path):
    schedule = {"optimizer__decay_steps": 60}
    assert train_here(letters, tmp_path / "run", train__num_steps=30, **schedule) == 0
    assert train_here(letters, tmp_path / "run") == 0
    assert_same_run(trained, tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_other_families_train(letters, tmp_path, family):
    changes = {"model__family": family, "train__num_steps": 4, "optimizer__warmup_steps": 0}
    assert train_here(letters, tmp_path / "run", **changes) == 0
    results = json.loads((tmp_path / "run/eval/4/results.json").read_text())["metrics"]
    assert 0.3 < results["accuracy"] <= 1 and results["task_loss"] < 2


def test_preview_shows_the_correct_candidate(letters, call):
    outcome = call("lm.data.show", f"--config={letters.config}:{letters.text}", "--n=1", "--rows=1")
    assert outcome.status == 0 and "correct" in outcome.stdout, outcome.stderr


def test_missing_field_of_candidates_is_refused(refused_settings, letters):
    message = "config.data.train.letters.pair_field: name the field that holds the list of candidates"
    refused_settings(message, letters, ["data.train.letters.pair_field="])


def test_config_is_checked_as_that_of_other_labelled_tasks():
    values = {
        "data": {"train": {"q": {"kind": "tsv", "path": "x", "pair_field": "of", "label_field": "is"}}},
        "objective": {"name": "multiple_choice"},
    }
    with pytest.raises(UserError, match="kind: tsv does not support choices; use jsonl or parquet or tfds"):
        Config.from_dict(values)
