"""The evaluator of generated text, with a translator that needs no model, and its file of predictions."""

import json
import math
import os
import types
from dataclasses import replace

import jax
import pytest

from lm.config import GenerationConfig, MeshConfig
from lm.data.reading.readers import Pair
from lm.data.tokenizing.base import Tokenizers
from lm.decoding.beam import BeamSettings
from lm.errors import UserError
from lm.evaluation import generation
from lm.evaluation.evaluator import EvaluationSetup
from lm.evaluation.generation import Generation
from lm.evaluation.predictions import Example, read_predictions, write_predictions
from lm.evaluation.text_metrics import score
from lm.parallel.mesh import make_mesh

METRICS = ("bleu", "exact_match")
SETTINGS = GenerationConfig(metrics=METRICS, num_beams=5, length_penalty=0.6, max_new_tokens=20, batch_size=2)


@pytest.fixture
def translator(monkeypatch):
    """In place of beam search: an output is the source in capitals, or what `answers` has for it."""
    calls, answers = [], {}

    def translate(decoder, source_tokenizer, texts, settings, source_length):
        batch_size, report = decoder.batch_size, decoder.report
        calls.append((decoder.params, list(texts), settings, batch_size, source_length))
        outputs = []
        for done, text in enumerate(texts, start=1):
            outputs.append([(answers.get(text, text.upper()), -0.5 * done)])
            if report is not None and (done % batch_size == 0 or done == len(texts)):
                report(done, len(texts))
        return outputs

    monkeypatch.setattr(generation, "generate_texts", translate)
    return types.SimpleNamespace(calls=calls, answers=answers)


def pairs(*sources):
    return [Pair(source, (source.upper(),)) for source in sources]


def evaluator(pairs, settings=SETTINGS, **options):
    config = types.SimpleNamespace(
        eval=types.SimpleNamespace(generation=settings), data=types.SimpleNamespace(source_length=30)
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Generation(EvaluationSetup(config, None, mesh, Tokenizers("target", "source"), {}, pairs, **options))


def test_metrics_examples_and_settings(translator):
    translator.answers["b c d e"] = "wrong"
    seen = []
    each = evaluator({"text": pairs("a b c d", "b c d e", "f g h i")})
    got = each.evaluate("parameters", 7, lambda *counts, noun: seen.append((*counts, noun)))
    predictions, references = ["A B C D", "wrong", "F G H I"], [("A B C D",), ("B C D E",), ("F G H I",)]
    expected = score(METRICS, predictions, references, bleu_tokenize="13a")
    assert got == {f"valid/{name}": value for name, value in expected.metrics.items()}
    assert got["valid/exact_match"] == pytest.approx(200 / 3)
    assert each.signatures == expected.signatures and "tok:13a" in each.signatures["bleu"]
    assert each.examples[1] == Example("b c d e", ("B C D E",), "wrong", -1.0)
    ((params, texts, settings, batch_size, source_length),) = translator.calls
    assert (params, batch_size, source_length) == ("parameters", 2, 30) and texts == ["a b c d", "b c d e", "f g h i"]
    assert settings == BeamSettings(num_beams=5, length_penalty=0.6, max_new_tokens=20, num_hypotheses=1)
    assert seen == [(2, 3, "outputs"), (3, 3, "outputs")]


def test_every_setting_of_the_search_is_passed_on(translator):
    values = {
        "num_beams": 3,
        "penalty": "gnmt",
        "length_penalty": 0.3,
        "max_new_tokens": 9,
        "min_new_tokens": 2,
        "no_repeat_ngram": 4,
        "exact": False,
    }
    settings = GenerationConfig(metrics=("wer",), batch_size=5, **values)
    evaluator({"text": pairs("a")}, settings).evaluate(None, 0)
    _, _, used, batch_size, _ = translator.calls[0]
    assert used == BeamSettings(**values, num_hypotheses=1) and batch_size == 5


def test_data_sources_are_scored_apart_and_together(translator):
    """The whole is the score of all texts together, which for BLEU is no mean."""
    parts = {"talk": pairs("a b c d e", "q"), "news": pairs("d e f g h i j", "x y", "k l m n")}
    translator.answers |= {"x y": "X Z", "a b c d e": "A B C D F"}
    got = evaluator(parts, name="test").evaluate(None, 0)
    alone = {source: evaluator({source: each}).evaluate(None, 0) for source, each in parts.items()}
    whole = evaluator({"all": parts["talk"] + parts["news"]}).evaluate(None, 0)
    for name in METRICS:
        assert got[f"test/{name}"] == whole[f"valid/{name}"]
        for source in parts:
            assert got[f"test/{source}/{name}"] == alone[source][f"valid/{name}"]
    assert len(got) == 6 and got["test/exact_match"] == 60


def test_limited_examples_are_spread_over_the_split_and_reported(translator):
    parts = {"a": pairs(*map(str, range(90))), "b": pairs(*(f"b{i}" for i in range(10))), "none": []}
    each = evaluator(parts, replace(SETTINGS, max_examples=10), in_training=True)
    got = each.evaluate(None, 0)
    assert got["valid/examples"] == len(each.examples) == 10
    assert [example.source for example in each.examples] == [str(i) for i in range(0, 90, 10)] + ["b0"]
    assert not [name for name in got if "none" in name]
    assert "valid/examples" not in evaluator(parts, replace(SETTINGS, max_examples=100), in_training=True).evaluate(
        None, 0
    )


def test_all_references_of_a_data_source_determine_the_tokens(translator):
    """The scored Chinese pair does not decide for the English ones beside it, nor those for another data source."""
    english = [Pair(f"the cat sat on the mat {i}", (f"the cat sat on the mat {i}",)) for i in range(20)]
    chinese = [Pair("a", ("我们明天去北京看长城",)), Pair("b", ("他昨天买了一本新书",))]
    translator.answers.update({pair.source: pair.references[0] for pair in [*english, *chinese]})
    settings = replace(SETTINGS, metrics=("bleu", "wer"), max_examples=2)
    limited = evaluator({"mixed": [chinese[0], *english]}, settings, in_training=True)
    limited.evaluate(None, 0)
    assert limited.examples[0].prediction == chinese[0].target and "tok:13a" in limited.signatures["bleu"]
    each = evaluator({"en": english, "zh": chinese}, settings)
    got = each.evaluate(None, 0)
    assert got["valid/zh/bleu"] == got["valid/en/bleu"] == pytest.approx(100) and got["valid/wer"] == 0
    assert "tok:13a" in each.signatures["bleu"] and "tok:zh" in each.signatures["zh/bleu"]
    assert each.signatures["zh/wer"] == "tok:space|unspaced:char" and "en/bleu" not in each.signatures


def test_missing_output_is_an_error(translator, monkeypatch):
    monkeypatch.setattr(generation, "generate_texts", lambda *_: [[("A", 0.0)]])
    with pytest.raises(AssertionError, match="a source text has no output"):
        evaluator({"text": pairs("a", "b")}).evaluate(None, 0)


EXAMPLES = [
    Example("ein Haus", ("a house", "one house"), "a house", -0.25),
    Example("zwei\u2028Zeilen\n“日本”", ("x",), "", math.nan),
]


def test_predictions_are_lines_of_utf8(tmp_path):
    path = tmp_path / "eval" / "7" / "predictions.jsonl"
    write_predictions(path, EXAMPLES)
    first, second, rest = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(first) == {
        "source": "ein Haus",
        "reference": "a house",
        "references": ["a house", "one house"],
        "prediction": "a house",
        "score": -0.25,
    }
    assert list(json.loads(second)) == ["source", "reference", "prediction", "score"]
    assert "日本" in second and json.loads(second)["score"] is None and rest == ""
    found = read_predictions(path)
    assert found[0] == EXAMPLES[0] and found[1].source == EXAMPLES[1].source and math.isnan(found[1].score)
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_old_predictions(tmp_path, monkeypatch):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, EXAMPLES[:1])
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, EXAMPLES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no predictions"),
        (b"\xff\n", "not valid utf-8 at line 1, byte 0"),
        (b'{"source": "a", "reference": "b", "prediction": "c"}\n{"sour', "line 2: expected a JSON object"),
        (b'{"source": "a", "prediction": "c"}', "line 1: .* source, prediction and reference"),
        (b'{"source": "a", "reference": 3, "prediction": "c"}', "line 1"),
        (b'{"source": "a", "references": "bc", "prediction": "c"}', "line 1: .* a list of strings named references"),
        (b'{"source": "a", "references": {"b": 1}, "prediction": "c"}', "line 1"),
        (b"[1]", "line 1"),
    ],
)
def test_files_without_predictions_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_predictions(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_predictions(tmp_path / "predictions.jsonl")
