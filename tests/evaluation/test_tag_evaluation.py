"""Predicted tags of packed rows against loops over the words."""

import math

import jax
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.data.reading.readers import Tagged
from lm.errors import UserError
from lm.evaluation.evaluator import EvaluationSetup
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of
from tests.evaluation.table_model import (
    BYTES,
    TAGS,
    TableModel,
    config_of,
    evaluation,
    metrics_of,
    random_table,
    read,
    rows_of,
    sentences,
    softmax,
)


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
