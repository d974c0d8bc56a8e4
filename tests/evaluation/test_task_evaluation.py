"""Predictions of packed rows are mapped back to their examples: metrics and files against loops over the examples.

The model is a table: its output at a position depends on one token near it (or on the token itself), so that its
prediction for an example is known without any row.
"""

import json
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Output
from lm.config import Config, MeshConfig
from lm.config.experiment import replace_settings
from lm.data.packing.rows import EvalRows
from lm.data.reading.readers import Labelled, Question, Tagged
from lm.data.storing.example_store import ExampleStore
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.intervals import resamples
from lm.evaluation.prediction_evaluator import PredictionEvaluator
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of

BYTES = ByteTokenizer()
LABELS = ("bad", "fair", "good")
TAGS = ("B-PER", "B-LOC", "O")


@dataclass(frozen=True)
class TableModel:
    """Logits are rows of params["table"] (V, C): those of the token `ahead` positions further on."""

    ahead: int

    def apply(self, variables, batch, train):
        assert not train
        return Output(variables["params"]["table"][jnp.roll(batch.tokens, -self.ahead, axis=1)])


def config_of(objective, length=16, pooling="first", best="valid/loss", labels=(), **evaluation):
    texts = objective in ("classification", "regression")
    field = {"label_field": "label"} if objective != "span_qa" else {}
    labels = labels or {"classification": LABELS, "tagging": TAGS}.get(objective, ())
    return Config.from_dict(
        {
            "data": {
                "train": {"s": {"kind": "jsonl", "path": "x", **field}},
                "sequence_length": length,
                "labels": labels,
                **({"context_overlap": 12} if objective == "span_qa" else {}),
            },
            "objective": {"name": objective, **({"label_smoothing": 0.1} if labels else {})},
            "model": {"family": "encoder", **({"pooling": pooling} if texts else {})},
            "eval": {"batch_size": 3, **evaluation},
            "checkpoint": {"best_metric": best},
        }
    )


def metrics_of(objective):
    config = config_of(objective, length=32)
    return task_of(config).metrics(config)


def rows_of(config, raw):
    task = task_of(config)
    store = ExampleStore(
        "s", list(raw), task.tokens.encode(raw, BYTES), "", {"examples": len(raw), "unknown": 0}, {}, []
    )
    return EvalRows(task.example_type(store, config, BYTES, False), task.layout(config))


def evaluation(config, sources, ahead=0, devices=1, max_rows=0, **options):
    sources = sources if isinstance(sources, dict) else {"s": sources}
    rows = {name: rows_of(config, raw) for name, raw in sources.items()}
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    config = replace_settings(config, {"eval.max_rows": max_rows})
    setup = EvaluationSetup(config, TableModel(ahead), mesh, None, rows, {}, in_training=True, **options)
    return PredictionEvaluator(task_of(config), setup)


def random_table(labels, seed=0):
    return np.random.default_rng(seed).normal(0.0, 2.0, (BYTES.vocab_size, labels)).astype(np.float32)


def softmax(scores):
    powers = [math.exp(float(score)) for score in scores]
    return [power / sum(powers) for power in powers]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- a label for a text ---------------------------------------------------------------------------------------


def texts(number, pair=False, seed=1):
    draw = np.random.default_rng(seed)

    def text():
        return "".join(draw.choice(list("abcdefgh"), draw.integers(1, 12)))

    return [Labelled(text(), text() if pair else None, str(draw.choice(LABELS))) for _ in range(number)]


def predicted_for(table, token):
    probabilities = softmax(table[token])
    return LABELS[int(np.argmax(probabilities))], probabilities


def by_hand(raw, predicted):
    """Accuracy, macro F1 and loss, example by example."""
    pairs = [(each.label, name) for each, (name, _) in zip(raw, predicted, strict=True)]
    f1 = []
    for label in {name for pair in pairs for name in pair}:
        hits = sum(pair == (label, label) for pair in pairs)
        f1.append(2 * hits / (sum(gold == label for gold, _ in pairs) + sum(name == label for _, name in pairs)))
    losses = [-math.log(p[LABELS.index(each.label)]) for each, (_, p) in zip(raw, predicted, strict=True)]
    return {
        "accuracy": sum(gold == name for gold, name in pairs) / len(pairs),
        "f1_macro": sum(f1) / len(f1),
        "loss": sum(losses) / len(losses),
    }


@pytest.mark.parametrize(
    ("pooling", "ahead", "pair", "devices"),
    [("first", 1, False, 1), ("mean", 1, True, 8), ("last", -1, False, 8), ("last", -1, True, 1)],
)
def test_classification_equals_loop_over_examples(tmp_path, pooling, ahead, pair, devices):
    """The label is predicted at bos from the first byte of the text, or at eos from its last one."""
    raw, table = texts(31, pair), random_table(3)
    config = config_of("classification", length=30, pooling=pooling, bootstrap=40)
    each = evaluation(config, raw, ahead, devices)
    assert 1 < each.num_rows < len(raw), "rows hold several texts"
    found = each.evaluate({"table": table}, step=5)

    def deciding(example):
        return BYTES.encode(example.text)[0] if ahead == 1 else BYTES.encode(example.pair or example.text)[-1]

    predicted = [predicted_for(table, deciding(example)) for example in raw]
    wanted = by_hand(raw, predicted)
    assert list(found) == [f"valid/{name}" for name in metrics_of("classification")]
    for name, value in wanted.items():
        assert found[f"valid/{name}"] == pytest.approx(value, rel=1e-5), name
    assert 0.1 < wanted["accuracy"] < 0.9, "otherwise the test would distinguish little"

    right = np.array([example.label == name for example, (name, _) in zip(raw, predicted, strict=True)], float)
    drawn = [right[places_E].mean() for block in resamples(len(right), 40, config.seed) for places_E in block]
    assert each.intervals()["accuracy"] == tuple(np.percentile(drawn, (2.5, 97.5)))
    assert each.whole.preview(4)["predicted"] == predicted[4][0]
    assert list(each.whole.preview(4).values()) == [*raw[4].texts, predicted[4][0], raw[4].label]

    lines, picture = each.write(tmp_path, "predictions")
    assert (lines.name, picture.name) == ("predictions.jsonl", "predictions-confusion.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for example, (name, probabilities), line in zip(raw, predicted, read(lines), strict=True):
        score = line.pop("score")
        assert score == pytest.approx(max(probabilities), rel=1e-5)
        second = {"pair": example.pair} if pair else {}
        assert line == {"text": example.text, **second, "label": example.label, "prediction": name}


def test_regression_equals_loop_over_examples(tmp_path):
    draw, table = np.random.default_rng(3), random_table(1)
    raw = [Labelled(each.text, None, f"{draw.normal():.3f}") for each in texts(20)]
    each = evaluation(config_of("regression", length=30), raw, ahead=1)
    found = each.evaluate({"table": table}, 0)
    gold = np.array([float(example.label) for example in raw])
    predicted = np.array([float(table[BYTES.encode(example.text)[0], 0]) for example in raw])
    error = np.mean((gold - predicted) ** 2)
    assert list(found) == [f"valid/{name}" for name in metrics_of("regression")]
    assert found["valid/loss"] == pytest.approx(error, rel=1e-5)
    assert found["valid/mean_squared_error"] == pytest.approx(error, rel=1e-6)
    assert found["valid/pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1], rel=1e-6)
    (path,) = each.write(tmp_path, "predictions")
    for example, number, line in zip(raw, predicted, read(path), strict=True):
        assert line == {"text": example.text, "label": float(example.label), "prediction": pytest.approx(number)}
    assert each.whole.preview(0) == {
        "text": raw[0].text,
        "predicted": f"{predicted[0]:.3g}",
        "label": raw[0].label,
    }


# --- a tag for a word -----------------------------------------------------------------------------------------


def sentences(number, longest=12, seed=2):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        words = tuple("".join(draw.choice(list("stuvwxyz"), draw.integers(0, 6))) for _ in range(longest))
        words = ("s", *words[: draw.integers(0, longest)])
        found.append(Tagged(words, tuple(map(str, draw.choice(TAGS, len(words))))))
    return found


def tags_by_hand(raw, table):
    return [
        [TAGS[int(np.argmax(table[BYTES.encode(word)[0]]))] if word else "O" for word in each.words] for each in raw
    ]


def entity_scores(raw, predicted):
    """Every B- tag is an entity of one word, for there is no I-."""
    pairs = [pair for each, tags in zip(raw, predicted, strict=True) for pair in zip(each.tags, tags, strict=True)]
    hits = sum(gold == tag != "O" for gold, tag in pairs)
    precision, recall = hits / sum(tag != "O" for _, tag in pairs), hits / sum(gold != "O" for gold, _ in pairs)
    return {
        "entity_f1": 2 * precision * recall / (precision + recall),
        "entity_precision": precision,
        "entity_recall": recall,
        "token_accuracy": sum(gold == tag for gold, tag in pairs) / len(pairs),
    }


def test_tags_of_sentences_in_several_parts(tmp_path):
    raw, table = sentences(25), random_table(3)
    each = evaluation(config_of("tagging", length=12), raw)
    parts = each._rows["s"].examples
    assert np.bincount(parts.example_of).max() > 2 and any("" in example.words for example in raw)
    found, predicted = each.evaluate({"table": table}, 0), tags_by_hand(raw, table)
    assert {name: found[f"valid/{name}"] for name in metrics_of("tagging")[1:]} == pytest.approx(
        entity_scores(raw, predicted)
    )
    losses = [
        -math.log(softmax(table[BYTES.encode(word)[0]])[TAGS.index(tag)])
        for example in raw
        for word, tag in zip(example.words, example.tags, strict=True)
        if word
    ]
    assert found["valid/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    (path,) = each.write(tmp_path, "predictions")
    wanted = [
        {"words": list(example.words), "tags": list(example.tags), "prediction": tags}
        for example, tags in zip(raw, predicted, strict=True)
    ]
    assert read(path) == wanted


def test_tags_without_a_scheme_have_no_entities():
    raw = [Tagged(("a", "b"), ("NOUN", "VERB"))] * 5
    config = config_of("tagging", labels=("NOUN", "VERB"))
    found = evaluation(config, raw).evaluate({"table": random_table(2)}, 0)
    assert set(found) == {"valid/loss", "valid/token_accuracy"}
    config = config_of("tagging", labels=("NOUN", "VERB"), best="valid/entity_f1")
    with pytest.raises(UserError, match=r"best_metric: 'valid/entity_f1' is not computed because the tags \('NOUN'"):
        rows, mesh = {"s": rows_of(config, raw)}, make_mesh(MeshConfig(), jax.devices()[:1])
        task_of(config).evaluators(EvaluationSetup(config, TableModel(0), mesh, None, rows, {}))


@pytest.mark.parametrize(("labels", "tag"), [(("NOUN", "VERB"), None), (("B-X", "I-X"), None), (TAGS, "O")])
def test_a_word_without_tokens_is_outside_only_if_the_task_has_an_outside(labels, tag, tmp_path):
    table = np.zeros((BYTES.vocab_size, len(labels)), np.float32)
    table[:, 0] = 1.0  # the first label for every word with tokens
    raw = [Tagged(("a", "", "b"), (labels[0], labels[-1], labels[0])), Tagged(("",), (labels[-1],))]
    each = evaluation(config_of("tagging", labels=labels), raw)
    found = each.evaluate({"table": table}, 0)
    assert found["valid/token_accuracy"] == (0.5 if tag is None else 1.0)
    (path,) = each.write(tmp_path, "predictions")
    assert [line["prediction"] for line in read(path)] == [[labels[0], tag, labels[0]], [tag]]
    assert each.previews(1) == [
        {"words": "a  b", "predicted": f"{labels[0]} {tag or '·'} {labels[0]}", "tags": " ".join(raw[0].tags)}
    ]
    (note,) = each._rows["s"].examples.notes
    assert note.startswith("2 of 4 words have no tokens; they ") and ("count as O" in note) == (tag == "O")


def test_a_loss_without_targets_is_undefined_and_the_other_metrics_stay():
    """The words of one data source have no tokens, so none is a target; gold and predicted tags are compared."""
    empty, full = [Tagged(("", ""), ("O", "B-PER"))], [Tagged(("a",), ("O",))]
    each = evaluation(config_of("tagging"), empty)
    assert each.missing == {} and each.undefined == set()
    found = each.evaluate({"table": random_table(3)}, 0)
    assert math.isnan(found["valid/loss"]) and found["valid/token_accuracy"] == 0.5
    assert "no example has a target" in each.missing["task_loss"] and "loss" in each.undefined
    each = evaluation(config_of("tagging"), {"empty": empty, "full": full})
    assert math.isfinite(each.evaluate({"table": random_table(3)}, 0)["valid/loss"])
    assert each.missing == {} and each.undefined == {"empty/loss"}


# --- an answer in a text --------------------------------------------------------------------------------------


def questions():
    """In each context, [ and ] stand around what the table below takes for the answer; in two nothing stands."""
    draw = np.random.default_rng(4)
    found = []
    for number in range(12):
        before, after = ("".join(draw.choice(list("ab é中"), draw.integers(0, 40))) for _ in range(2))
        context = before + f"[{number} é]" + after if number % 6 else before + after
        answer = context[len(before) : len(before) + 5]
        right = (("nothing", 0),) if number % 4 == 3 else ((answer, len(before)),) if number % 6 else ()
        found.append(Question(f"q{number}", f"t{number}", "who?", context, right))
    return found


def answer_table():
    """Starts at [ and ends at ], wherever it stands; no answer (at bos) scores more than any other span."""
    table = np.full((BYTES.vocab_size, 2), -3.0, np.float32)
    table[BYTES.encode("[")[0], 0] = table[BYTES.encode("]")[0], 1] = 9.0
    table[BYTES.bos_id] = 1.0
    return table


@pytest.mark.parametrize("devices", [1, 8])
def test_answers_in_contexts_of_several_windows(tmp_path, devices):
    raw = questions()
    each = evaluation(config_of("span_qa", length=32), raw, devices=devices)
    parts = each._rows["s"].examples
    assert np.bincount(parts.example_of).max() > 2
    found = each.evaluate({"table": answer_table()}, 0)
    predicted = [
        f"[{number} é]" if number % 6 else "" for number in range(len(raw))
    ]  # to the character, and "" for no answer
    right = [number for number in range(len(raw)) if number % 4 != 3]
    assert found["valid/exact_match"] == pytest.approx(100 * len(right) / len(raw))
    assert found["valid/f1"] == pytest.approx(100 * len(right) / len(raw))
    (path,) = each.write(tmp_path, "predictions")
    lines = read(path)
    assert [(line["id"], line["prediction"]) for line in lines] == [
        (question.id, answer) for question, answer in zip(raw, predicted, strict=True)
    ]
    assert [line["answers"] for line in lines] == [[text for text, _ in each.answers] for each in raw]
    assert each.whole.preview(1) == {"question": "who?", "predicted": predicted[1], "answer": predicted[1]}
    assert each.whole.preview(0) == {"question": "who?", "predicted": "no answer", "answer": "no answer"}


def test_each_source_of_questions_has_its_own_rules():
    """A Chinese answer that is right in part: F1 by characters there, beside English questions scored by words."""
    english = [Question("e", "", "who?", "x [1 é] y", (("[1 é]", 2),))]
    chinese = [Question("c", "", "谁？", "甲[乙丙]丁", (("[乙丙丁", 1),))]
    each = evaluation(config_of("span_qa", length=40), {"c": chinese, "e": english})
    found = each.evaluate({"table": answer_table()}, 0)
    assert found["valid/e/f1"] == 100 and found["valid/c/exact_match"] == 0
    assert 0 < found["valid/c/f1"] < 100, "in words it would be 0"
    assert found["valid/f1"] == (found["valid/e/f1"] + found["valid/c/f1"]) / 2


def test_loss_of_nothing_is_nan():
    raw = [Question("1", "", "who?", "x y", (("elsewhere", 0),))]
    found = evaluation(config_of("span_qa", length=32), raw).evaluate({"table": answer_table()}, 0)
    assert math.isnan(found["valid/loss"]) and found["valid/f1"] == 0


# --- several sources, a part of the rows ------------------------------------------------------------------------


def test_data_sources_are_scored_apart_and_together(tmp_path):
    sources = {"one": texts(11, seed=5), "two": texts(30, seed=6)}
    config, params = config_of("classification"), {"table": random_table(3)}
    seen = []
    each = evaluation(config, sources, 1, name="test")
    found = each.evaluate(params, 0, lambda done, total: seen.append((done, total)))
    for name, raw in sources.items():
        alone = evaluation(config, raw, 1, name="test").evaluate(params, 0)
        assert {f"test/{name}/{key.removeprefix('test/')}": value for key, value in alone.items()}.items() <= (
            found.items()
        )
    together = [*sources["one"], *sources["two"]]
    predicted = [predicted_for(params["table"], BYTES.encode(example.text)[0]) for example in together]
    for name, value in by_hand(together, predicted).items():
        assert found[f"test/{name}"] == pytest.approx(value, rel=1e-5), name
    assert seen[-1] == (each.num_rows, each.num_rows) and [done for done, _ in seen] == sorted({d for d, _ in seen})
    paths = each.write(tmp_path, "p")
    assert [line["text"] for line in read(paths[0])] == [example.text for example in together]


def test_incomplete_examples_of_limited_rows_are_left_out():
    raw, table = sentences(40), random_table(3)
    config = config_of("tagging", length=12)
    each = evaluation(config, raw, max_rows=25)
    rows = each._rows["s"]
    chosen = {part for row in each._row_ids["s"] for part, _ in rows.starts(int(row))}
    whole = [
        example
        for number, example in enumerate(raw)
        if set(np.flatnonzero(rows.examples.example_of == number).tolist()) <= chosen
    ]
    touched = {int(rows.examples.example_of[part]) for part in chosen}
    assert 0 < len(whole) < len(touched), "of some examples only a part is scored"
    found = each.evaluate({"table": table}, 0)
    assert found["valid/examples"] == len(whole) and each.whole.raw == whole
    wanted = entity_scores(whole, tags_by_hand(whole, table))
    assert {name: found[f"valid/{name}"] for name in wanted} == pytest.approx(wanted)
    assert "valid/examples" not in evaluation(config, raw).evaluate({"table": table}, 0)


def test_limit_without_any_whole_example_is_refused():
    raw = [Question(str(i), "", "who?", "abc " * 20, ()) for i in range(4)]
    with pytest.raises(
        UserError, match=r"eval\.max_rows: no example of s lies entirely within its 3 scored rows \(of \d+\)"
    ):
        evaluation(config_of("span_qa", length=32), raw, max_rows=3)
    assert evaluation(config_of("span_qa", length=32), raw, max_rows=99).num_rows > 3


def test_model_that_is_not_finite_is_scored_without_error(tmp_path):
    for objective, raw, labels in (
        ("classification", texts(5), 3),
        ("regression", [Labelled("a", None, "1"), Labelled("b", None, "2")], 1),
        ("tagging", sentences(5), 3),
        ("span_qa", questions(), 2),
    ):
        each = evaluation(config_of(objective, length=32), raw)
        found = each.evaluate({"table": random_table(labels) * np.float32(np.nan)}, 0)
        assert math.isnan(found["valid/loss"]) and set(found) >= {f"valid/{name}" for name in metrics_of(objective)}
        path, *_ = each.write(tmp_path, objective)
        assert len(read(path)) == len(raw)
