"""LoRA adapters initially change nothing, are the only trained parameters, and merge into the same function."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from lm.batch import Batch, Source
from lm.config import Config, ModelConfig
from lm.models import build_model
from lm.models.heads import MaskedTokens
from lm.models.parameters import adapters, count_parameters, merge_adapters, unstack_layers
from lm.tasks import task_of
from lm.training.multipliers import learning_rate_multipliers
from lm.training.optimizers import make_optimizer
from tests.trees import flatten

V = 23
ALL = ("query", "key", "value", "out", "up", "gate", "down")
SMALL = {"vocab_size": V, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "d_ff": 20, "max_length": 8}
DECODER = ModelConfig(
    **SMALL, num_layers=2, activation="swiglu", init_std=0.2, lora_rank=3, lora_alpha=6.0, lora_targets=ALL
)
TWO_SIDED = dataclasses.replace(
    DECODER,
    family="encoder_decoder",
    num_encoder_layers=1,
    positions="relative",
    activation="gelu",
    tie_embeddings=False,
)
TWO_SIDED = dataclasses.replace(TWO_SIDED, lora_targets=("query", "out", "down"))


SHARED = dataclasses.replace(DECODER, share_layers=True, embedding_width=6, qk_norm="width", norm_position="branch")


def initial(config, head=None):
    return nn.unbox(build_model(config, head).initial_params(jax.random.key(0)))


def random_tree(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), tree)


def batch(config):
    ids = np.random.default_rng(1).integers(0, V, (2, 8)).astype(np.int32)
    positions, ones = np.broadcast_to(np.arange(8, dtype=np.int32), ids.shape), np.ones_like(ids)
    two = config.family == "encoder_decoder"
    source = Source(tokens=ids[:, ::-1], positions=positions, segments=ones) if two else None
    return Batch(ids, np.roll(ids, -1, 1), ones.astype(np.float32), positions, ones, source)


def logits(config, params):
    return jax.jit(build_model(config).apply)({"params": params}, batch(config)).logits


def test_new_adapters_change_nothing():
    params = jax.jit(lambda: initial(DECODER))()
    plain = dataclasses.replace(DECODER, lora_rank=0)
    np.testing.assert_array_equal(logits(DECODER, params), logits(plain, _without_adapters(params)))
    query = flatten(params)["layers/attention/query/lora_a"]
    assert query.shape == (2, 16, 3) and float(np.std(query)) == pytest.approx(1 / 4, rel=0.25)


@pytest.mark.parametrize("stacked", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("config", [DECODER, TWO_SIDED, SHARED], ids=["decoder", "encoder_decoder", "shared"])
def test_merged_adapters_give_the_same_logits(config, stacked):
    params = random_tree(jax.eval_shape(lambda: initial(config)))
    config = dataclasses.replace(config, scan_layers=stacked)
    params = params if stacked else unstack_layers(params)
    merged, plain = merge_adapters(params, config)
    assert plain == dataclasses.replace(config, lora_rank=0)
    assert jax.tree.structure(merged) == jax.tree.structure(jax.eval_shape(lambda: initial(plain)))
    found, expected = logits(plain, merged), logits(config, params)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-6)
    # The adapters have an effect.
    assert np.abs(logits(plain, _without_adapters(params)) - expected).max() > 0.05 * scale


def _without_adapters(tree):
    return {
        name: _without_adapters(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if not name.startswith("lora_")
    }


def test_merging_adds_the_scaled_adapter_to_the_kernel():
    """W + (alpha / rank) A B for the query and the output matrix of the last of two layers."""
    params = random_tree(jax.eval_shape(lambda: initial(DECODER)))
    merged, _ = merge_adapters(params, DECODER)
    for name, form in (("query", "dr,rhk->dhk"), ("out", "hkr,rd->hkd")):
        before, after = (tree["layers"]["attention"][name] for tree in (params, merged))
        difference = 2.0 * np.einsum(form, before["lora_a"][1], before["lora_b"][1])
        np.testing.assert_allclose(after["kernel"][1], before["kernel"][1] + difference, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(after["bias"], before["bias"])


@pytest.mark.parametrize(
    "config", [DECODER, TWO_SIDED, SHARED, dataclasses.replace(DECODER, lora_targets=("value", "up"))]
)
def test_adapter_parameters_are_counted_exactly(config):
    params = jax.eval_shape(lambda: initial(config))
    counts = build_model(config).parameter_counts()
    assert counts.total == count_parameters(params)
    assert counts.adapters == count_parameters(adapters(params))


def test_heads_have_no_adapters_even_if_a_target_has_the_name_of_a_part_of_them():
    config = dataclasses.replace(DECODER, family="encoder", head_transform=True, tie_embeddings=False)
    found = adapters(jax.eval_shape(lambda: initial(config, MaskedTokens(next_sentence=True))))
    assert len(found) == 2 * 7 and all(name.startswith("layers/") for name in found)


def test_only_adapters_and_head_are_trained_and_not_by_muon():
    values = {
        "data": {"train": {"a": {"kind": "conll", "path": "x"}}, "sequence_length": 8, "labels": ("A", "B")},
        "objective": {"name": "tagging"},
        "model": {**SMALL, "num_layers": 2, "lora_rank": 2},
        "optimizer": {"name": "muon", "warmup_steps": 0, "schedule": "constant"},
        "checkpoint": {"best_metric": "valid/loss"},
    }
    values["data"]["holdout"] = "hash"
    config = Config.from_dict(values)
    model = build_model(config.model, task_of(config).head(config))
    params = random_tree(jax.eval_shape(lambda: initial(config.model, task_of(config).head(config))))
    optimizer = make_optimizer(config.optimizer, 10, learning_rate_multipliers(config, model))
    updates, state = jax.jit(optimizer.update)(random_tree(params, 1), optimizer.init(params), params)
    moved = {
        path
        for path, before in flatten(params).items()
        if (flatten(optax.apply_updates(params, updates))[path] != before).any()
    }
    expected = {f"layers/attention/{name}/lora_{x}" for name in ("query", "value") for x in "ab"}
    assert moved == expected | {"classifier/kernel", "classifier/bias"}
    names = [path for path in flatten(state) if "lora" in path]
    assert len(names) == 2 * 4 and all("adam" in path for path in names)
