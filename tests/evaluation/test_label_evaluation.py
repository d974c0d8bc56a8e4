"""Predicted labels and numbers of packed rows against loops over the examples; data sources; models with NaN."""

import math

import numpy as np
import pytest

from lm.data.reading.readers import Labelled
from tests.evaluation.table_model import (
    BYTES,
    LABELS,
    config_of,
    evaluation,
    metrics_of,
    questions,
    random_table,
    read,
    sentences,
    softmax,
    texts,
)


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
    drawn = right[np.random.default_rng(config.seed).choice(len(right), size=(40, len(right)))].mean(axis=1)
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
