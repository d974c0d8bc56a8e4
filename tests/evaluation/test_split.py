"""The metrics of a split, and their names in the table."""

import types

import jax
import pytest

from lm.config import Config, MeshConfig, defaults, source
from lm.data.reading.readers import Pair
from lm.data.tokenizing.base import Tokenizers
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.evaluation import generation
from lm.evaluation.evaluator import EvaluationSetup
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of

BYTES = ByteTokenizer()
METRICS = ("loss", "perplexity", "token_accuracy", "bits_per_byte", "word_perplexity", "tokens")
TOTALS = {"targets": 90, "documents": 9, "bytes": 0, "words": 0, "unknown": 0}


def evaluation(objective: str, references: dict | None = None, name: str = "valid", in_training: bool = False):
    values = defaults()
    values.data.train.mine = source(path="text.txt", document="line")
    if objective == "seq2seq":
        values.data.train.mine.target_path = "target.txt"
        values.eval.generation.update(num_beams=5, training_beams=2, max_examples=3)
    values.objective.name = objective
    values.model.family = "decoder" if objective == "causal" else "encoder_decoder"
    values.data.tokenizer.extra_ids = 9
    values.eval.max_rows = 4
    if references:
        values.eval.generation.metrics = ("exact_match",)
    rows = {name: types.SimpleNamespace(num_rows=9, totals=TOTALS) for name in ("one", "two")}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = Config.from_dict(values.to_dict())
    setup = EvaluationSetup(config, None, mesh, Tokenizers(BYTES, BYTES), rows, references or {}, name, in_training)
    made = task_of(config).evaluation(setup)
    metrics = (
        METRICS if objective == "causal" else [each for each in METRICS if "byte" not in each and "word" not in each]
    )
    made._evaluators[0].evaluate = lambda params, step, report: {
        f"{name}/{part}{metric}": 2.0 for part in ("one/", "two/", "") for metric in metrics
    }
    return task_of(config), made


def test_plain_text_has_a_loss_and_metrics_of_its_bytes_and_words():
    task, each = evaluation("causal")
    values = each.evaluate(None, 0)
    assert len(values) == 18 and all(name.startswith("valid/") for name in values)
    shown = task.for_table(each.plain(values))
    assert set(shown) == {f"{part}{metric}" for part in ("one/", "two/", "") for metric in METRICS}
    assert set(each.missing) == {"bits_per_byte", "word_perplexity"}, "there is no byte and no word in these rows"


@pytest.mark.parametrize("objective", ["seq2seq", "span_corruption"])
@pytest.mark.parametrize("name", ["valid", "test", "test/one"])
def test_the_loss_of_a_target_with_a_source_is_called_nll_in_the_table(objective, name):
    task, each = evaluation(objective, name=name)
    values = each.evaluate(None, 0)
    assert f"{name}/loss" in values and not any("byte" in metric or "word" in metric for metric in values)
    parts, metrics = ("one/", "two/", ""), ("nll", "perplexity", "token_accuracy", "tokens")
    assert list(task.for_table(each.plain(values))) == [part + metric for part in parts for metric in metrics]
    assert each.missing == {} and each.signatures == {} and each.previews(9) == []


def test_training_evaluations_score_fewer_outputs_with_their_own_beams(monkeypatch):
    used = []

    def generate_texts(decoder, source_tokenizer, texts, settings, source_length):
        used.append((len(texts), settings.num_beams))
        return [[(text if int(text) < 3 else "wrong", 0.0)] for text in texts]

    monkeypatch.setattr(generation, "generate_texts", generate_texts)
    references = {"one": [Pair(str(i), (str(i),)) for i in range(9)]}
    task, whole = evaluation("seq2seq", references)
    _, during = evaluation("seq2seq", references, in_training=True)
    assert (whole.num_rows, during.num_rows) == (18, 4)
    for each in (whole, during):
        values = task.for_table(each.plain(each.evaluate(None, 0)))
        assert values["exact_match"] == pytest.approx(100 / 3) and values["nll"] == 2.0
    assert used == [(9, 5), (3, 2)]
