"""All that is measured on a split: which figures there are, and what the table calls them."""

import types

import jax
import pytest

from lm.config import Config, MeshConfig, defaults, source
from lm.data.reading.pairs import Pair
from lm.evaluation.split import SplitEvaluation
from lm.parallel.mesh import make_mesh

FIGURES = ("loss", "perplexity", "token_accuracy", "bits_per_byte", "word_perplexity", "tokens")
TOTALS = {"targets": 90, "documents": 9, "bytes": 0, "words": 0, "unknown": 0}


def evaluation(objective: str, pairs: dict | None = None, name: str = "valid", **options) -> SplitEvaluation:
    values = defaults()
    values.data.train.mine = source(path="text.txt", document="line")
    if objective == "seq2seq":
        values.data.train.mine.target_path = "target.txt"
    values.objective.name = objective
    values.model.family = "decoder" if objective == "causal" else "encoder_decoder"
    values.data.tokenizer.extra_ids = 9
    values.eval.max_rows = 4
    values.eval.generation.update(num_beams=5, training_beams=2, max_examples=3)
    if pairs:
        values.eval.generation.metrics = ("exact_match",)
    rows = {name: types.SimpleNamespace(num_rows=9, totals=TOTALS) for name in ("one", "two")}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = Config.from_dict(values.to_dict())
    made = SplitEvaluation(config, None, mesh, None, None, rows, pairs or {}, name=name, **options)
    made._loss.evaluate = lambda params, step: {
        f"{name}/{part}{figure}": 2.0 for part in ("one/", "two/", "") for figure in FIGURES
    }
    return made


def test_plain_text_has_a_loss_and_figures_of_its_bytes_and_words():
    each = evaluation("causal")
    values = each.evaluate(None, 0)
    assert len(values) == 18 and all(name.startswith("valid/") for name in values)
    assert set(each.for_table(values)) == {f"{part}{figure}" for part in ("one/", "two/", "") for figure in FIGURES}
    assert set(each.missing) == {"bits_per_byte", "word_perplexity"}, "there is no byte and no word in these rows"


@pytest.mark.parametrize("objective", ["seq2seq", "span_corruption"])
@pytest.mark.parametrize("name", ["valid", "test", "test/one"])
def test_the_loss_of_what_has_a_source_is_called_nll_in_the_table(objective, name):
    each = evaluation(objective, name=name)
    values = each.evaluate(None, 0)
    assert f"{name}/loss" in values and not any("byte" in figure or "word" in figure for figure in values)
    parts, figures = ("one/", "two/", ""), ("nll", "perplexity", "token_accuracy", "tokens")
    assert list(each.for_table(values)) == [part + figure for part in parts for figure in figures]
    assert each.missing == {} and each.signatures == {} and each.told(9) == []


def test_outputs_are_scored_beside_it_and_in_training_fewer_with_other_beams():
    pairs = {"one": [Pair(str(i), (str(i),)) for i in range(9)]}
    whole, during = evaluation("seq2seq", pairs), evaluation("seq2seq", pairs, in_training=True)
    assert (whole.num_rows, during.num_rows) == (18, 4)
    assert (whole._generation.num_examples, during._generation.num_examples) == (9, 3)
    for each, beams in ((whole, 5), (during, 2)):
        assert each._generation._settings.num_beams == beams
        each._generation.evaluate = lambda params, step: {"valid/exact_match": 50.0}
        values = each.for_table(each.evaluate(None, 0))
        assert values["exact_match"] == 50.0 and values["nll"] == 2.0
