"""The values behind the pictures of benchmarks/: gradients by distance, attention, BLEU by length, language models."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.attention_picture import draw, load, panels
from benchmarks.bleu_by_length import bleu_by_length, groups_of, predictions_of
from benchmarks.gradient_distance import norms_by_distance
from benchmarks.language_models import CONTENDERS, steps_within, table
from configs import wikitext2_ngram, wikitext2_words
from lm.batch import Batch
from lm.config import ModelConfig, ObjectiveConfig
from lm.errors import UserError
from lm.evaluation.predictions import Example, write_predictions
from lm.evaluation.text_metrics import score
from lm.models import build_model
from lm.models.network import RECORD, SOURCE_WEIGHTS
from lm.models.recurrent.attention import SourceAttention
from lm.objectives.losses import loss_sums
from lm.runs.directory import RunDirectory
from lm.runs.prepare import load_tokenizers
from tests.run_helpers import config_of, save_untrained
from tests.small_model import random_params, small_config
from tests.test_recurrent_runs import RECURRENT

LENGTH, VOCAB = 9, 12


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(architecture="recurrent", cell="rnn", vocab_size=VOCAB, max_length=9, num_layers=2, d_model=8),
        small_config(VOCAB, LENGTH, scan_layers=False),
    ],
    ids=["rnn", "transformer"],
)
def test_gradients_by_distance_are_those_of_the_embeddings_of_distinct_tokens(config):
    """If no token occurs twice in a row, the gradient of its embedding is that of the input."""
    model = build_model(dataclasses.replace(config, tie_embeddings=False))
    params = random_params(model, scale=1.0)
    tokens = np.stack([np.random.default_rng(row).permutation(VOCAB)[: LENGTH + 1] for row in range(3)]).astype(
        np.int32
    )
    positions, weights = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1)), np.zeros((3, LENGTH), np.float32)
    weights[:, -1] = 1.0
    batch = Batch(tokens[:, :-1], tokens[:, 1:], weights, positions, np.ones_like(positions))

    def loss(params, batch):
        return loss_sums(model.apply({"params": params}, batch).logits, batch, ObjectiveConfig()).loss

    gradient, expected = jax.jit(jax.grad(loss)), np.zeros(LENGTH)
    for row in range(3):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        table_VE = np.asarray(gradient(params, one)["token_embedding"]["embedding"])
        expected += np.linalg.norm(table_VE[one.tokens[0]], axis=1)[::-1] / 3
    np.testing.assert_allclose(norms_by_distance(model, params, batch), expected, rtol=1e-4)
    assert expected.min() > 0


def test_the_recorded_weights_are_the_softmax_of_the_scores():
    config = ModelConfig(architecture="recurrent", family="encoder_decoder", d_model=4, source_attention="dot")
    random = np.random.default_rng(0)
    x_BLD, memory_BSD = (random.normal(0, 1, (2, length, 4)).astype(np.float32) for length in (3, 5))
    mask_BLS = random.random((2, 3, 5)) < 0.7
    module = SourceAttention(config)
    params = module.init(jax.random.key(0), x_BLD, memory_BSD, mask_BLS)["params"]
    _, recorded = module.apply({"params": params}, x_BLD, memory_BSD, mask_BLS, mutable=[RECORD])
    scores_BLS = np.exp(np.einsum("BLD,BSD->BLS", x_BLD, memory_BSD)) * mask_BLS
    expected = scores_BLS / scores_BLS.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(recorded[RECORD][SOURCE_WEIGHTS][0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [RECURRENT, pytest.param({"model__num_layers": 2, "model__scan_layers": True}, marks=pytest.mark.exhaustive)],
)
def test_attention_of_each_output_token_is_drawn_without_padding(tiny_pairs, tmp_path, changes):
    save_untrained(tmp_path / "run", config_of(tiny_pairs, **changes))
    run = RunDirectory.existing(tmp_path / "run")
    config, model, params = load(run)
    params = random_params(model, scale=1.0)
    tokenizers = load_tokenizers(config, run.root)
    found = panels(config, model, params, tokenizers, ["ab c", "d"], num_beams=2)
    assert [len(each.source) for each in found] == [5, 2] and found[0].source[:2] == ["a", "b"]
    for each in found:
        assert each.weights_TS.shape == (len(each.output), len(each.source))
        np.testing.assert_allclose(each.weights_TS.sum(axis=1), 1, atol=1e-5)  # so padding has no weight
    draw(found, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_a_decoder_without_attention_is_refused(tiny_pairs, tmp_path):
    config = config_of(tiny_pairs, **RECURRENT, model__source_attention="none")
    save_untrained(tmp_path / "run", config)
    config, model, params = load(RunDirectory.existing(tmp_path / "run"))
    with pytest.raises(UserError, match="the decoder of this run has no attention"):
        panels(config, model, params, load_tokenizers(config, tmp_path / "run"), ["ab"], num_beams=1)


def test_groups_of_sources_hold_all_sources_of_a_length():
    lengths = np.repeat([3, 9, 4, 1, 7], [30, 10, 45, 15, 25])
    groups = groups_of(lengths, 3)
    assert sorted(np.concatenate(groups)) == list(range(125))
    assert [sorted({*lengths[group]}) for group in groups] == [[1, 3], [4], [7, 9]]
    assert [sorted({*lengths[group]}) for group in groups_of(lengths, 1)] == [[1, 3, 4, 7, 9]]


def test_bleu_of_each_group_is_that_of_its_texts_alone():
    words = "a b c d e f g h i j".split()
    examples = [
        Example(
            " ".join(words[: 4 + n % 2]), (" ".join(words[: 5 + n % 2]),), " ".join(words[: 5 - n % 2 + n % 3]), 0.0
        )
        for n in range(60)
    ]
    found = bleu_by_length(examples, 2, "13a")
    for each, odd in zip(found, (0, 1), strict=True):
        part = examples[odd::2]
        texts = [one.prediction for one in part], [one.references for one in part]
        assert each["bleu"] == score(("bleu",), *texts, bleu_tokenize="13a").metrics["bleu"]
        assert (each["words"], each["sources"]) == ([4 + odd, 4 + odd], 30)
    assert found[0]["bleu"] != found[1]["bleu"]


def test_predictions_are_those_of_the_split_and_of_its_latest_step(tiny_pairs, tmp_path):
    root, example = tmp_path / "run", Example("a b", ("c d",), "c d", 0.0)
    save_untrained(root, config_of(tiny_pairs))
    for step, stem, source in (
        (8, "predictions", "valid 8"),
        (16, "predictions", "valid 16"),
        (16, "predictions-beams5", "five beams"),
        (32, "predictions-test", "test"),
    ):
        path = root / f"eval/{step}/{stem}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(path, [dataclasses.replace(example, source=source)])
    found = [
        predictions_of(root, *each)[0][0].source for each in (("valid",), ("test",), ("valid", "predictions-beams5"))
    ]
    assert found == ["valid 16", "test", "five beams"]
    with pytest.raises(
        UserError, match=r"has no predictions-train.jsonl in any eval/STEP; run eval.py .* --split=train"
    ):
        predictions_of(root, "train")


def test_the_ngram_of_the_comparison_reads_the_words_of_the_other_models():
    config, wanted = wikitext2_ngram.get_config("folder"), wikitext2_words.word_data("folder")
    for name, value in (flag.removeprefix("--config.").split("=") for flag in CONTENDERS["ngram"].changes):
        config.update_from_flattened_dict({name: value == "True" if value in ("True", "False") else value})
    assert config.data == wanted.data


def test_steps_fill_the_time_with_their_evaluations():
    """Two seconds a step and eight for each evaluation, so ten steps with an evaluation take 28 s."""
    records = [{"step": step, "train/seconds": 30 + 2.0 * step} for step in (1, 2, 4, 6)]
    records += [{"step": 6, "train/seconds": 50.0, "valid/loss": 3.0}]
    assert steps_within(records, minutes=28 * 100 / 60 / 0.97, eval_every=10) in (999, 1000)
    with pytest.raises(UserError, match="too few steps"):
        steps_within([*records[:2], records[-1]], 1, 10)


def test_the_table_shows_what_has_been_run():
    run = {
        "minutes": 29.9,
        "parameters": 12_325_376,
        "steps": 900,
        "tokens": 1_008_000,
        "valid": 201.26,
        "test": 188.84,
    }
    lines = table({"lstm": run | {"hardware": "two cores", "commit": "abc"}}).split("\n")
    assert "| LSTM | 201.3 | 188.8 | 12.3 M | 1.01 M | 900 | 29.9 | two cores | abc |" in lines
    assert sum("not run yet" in line for line in lines) == len(CONTENDERS) - 1
