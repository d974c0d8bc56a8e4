"""A model without attention goes through training, resuming, evaluation and generation like any other."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm import models
from lm.batch import Batch
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, Vocabulary, row_keys
from lm.models import build_model
from lm.models.architecture import Architecture
from lm.models.parameters import count_parameters
from lm.runs.directory import RunDirectory
from tests.models.bag_of_words import BagOfWords
from tests.run_helpers import assert_same_run, config_of, train_here

BAG = {
    "model__architecture": "bag_of_words",
    "train__num_steps": 8,
    "eval__every_steps": 4,
    "checkpoint__every_steps": 4,
    "optimizer__warmup_steps": 0,
    "optimizer__schedule": "constant",
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    # It accepts the settings of the Transformer, because the config `tiny` changes some of them.
    settings = models.MODELS["transformer"].settings
    bag = Architecture("bag of words", {"decoder": BagOfWords.build}, settings)
    monkeypatch.setitem(models.MODELS, "bag_of_words", bag)


def test_a_stopped_run_continues_to_the_bit_and_is_evaluated(tiny, tmp_path, call):
    assert train_here(tiny, tmp_path / "straight", **BAG) == 0
    assert train_here(tiny, tmp_path / "halves", **BAG | {"train__num_steps": 4}) == 0
    assert train_here(tiny, tmp_path / "halves", **BAG) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "halves")
    outcome = call("eval.py", f"--workdir={tmp_path / 'straight'}", "--step=latest")
    assert outcome.status == 0, outcome.stderr
    results = json.loads((tmp_path / "straight/eval/8/results.json").read_text())
    assert 0 < results["metrics"]["loss"] < 5.6 and "bits/byte" in outcome.stdout
    outcome = call("lm.generate", f"--workdir={tmp_path / 'straight'}", "--prompt=a quick", "--max_new_tokens=5")
    assert outcome.status == 0 and outcome.stdout.startswith("a quick"), outcome.stderr
    outcome = call("lm.predict", f"--workdir={tmp_path / 'straight'}", "--text=a quick", "--pooling=mean")
    assert outcome.status == 0 and len(json.loads(outcome.stdout)["vector"]) == 16, outcome.stderr


def test_cached_generation_takes_the_best_tokens_of_the_full_forward_pass(tiny):
    config = config_of(tiny, **BAG, model__vocab_size=259)
    model = build_model(config.model)
    params = nn.unbox(model.initial_params(jax.random.key(1)))
    params["token_embedding"]["embedding"] = np.random.default_rng(0).normal(size=(259, 16)).astype(np.float32)
    prompts, vocabulary = [[256, 5, 9], [256]], Vocabulary(size=259, bos_id=256, eos_id=-1, pad_id=258)
    new = Sampler(model, params, Sampling(0.0), vocabulary, 6).generate(prompts, row_keys(0, np.arange(2), np.zeros(2)))
    for prompt, tokens in zip(prompts, new, strict=True):
        ids = np.array([[*prompt, *tokens]], np.int32)
        batch = Batch(ids, ids, np.ones(ids.shape, np.float32), np.arange(ids.size)[None], np.ones_like(ids))
        logits_LV = np.array(model.apply({"params": params}, batch).logits[0])
        logits_LV[:, 256] = -np.inf  # the BOS token is never chosen
        assert logits_LV[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens


def test_its_costs_are_counted(tiny, tmp_path):
    assert train_here(tiny, tmp_path / "run", **BAG | {"train__num_steps": 1}) == 0
    model = build_model(RunDirectory.existing(tmp_path / "run").load_config().model)
    shapes = jax.eval_shape(lambda: nn.unbox(model.initial_params(jax.random.key(0))))
    assert model.parameter_counts().total == count_parameters(shapes)
