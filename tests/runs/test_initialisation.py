"""Which parameters a run takes from another one (config.init_from), lists and refuses."""

import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, MeshConfig
from lm.errors import UserError
from lm.models import build_model
from lm.models.parameters import unstack_layers
from lm.parallel.mesh import make_mesh
from lm.runs.directory import RunDirectory
from lm.runs.initialisation import load_initial
from lm.tasks import task_of
from lm.training.optimizers import make_optimizer
from lm.training.state import abstract_state, make_state, with_params
from tests.trees import flatten

SMALL = {"family": "encoder", "vocab_size": 32, "num_layers": 3, "d_model": 16, "num_heads": 4, "max_length": 32}
SMALL |= {"positions": "learned"}


def masked(**changes) -> Config:
    """Returns the config of pre-training."""
    return Config.from_dict(
        {
            "data": {"train": {"a": {"kind": "embedded"}}, "sequence_length": 32, "tokenizer": {"extra_ids": 1}},
            "objective": {"name": "masked"},
            "model": {**SMALL, "head_transform": True, "output_bias": True, **changes},
            "optimizer": {"ema_decay": 0.9},
        }
    )


def tagger(root, optimizer=None, labels=("A", "B"), **changes) -> Config:
    """Returns the config of a run that is initialised from such a run."""
    return Config.from_dict(
        {
            "init_from": str(root),
            "data": {
                "train": {"a": {"kind": "conll", "path": "x"}},
                "sequence_length": 16,
                "labels": labels,
                "holdout": "hash",
            },
            "objective": {"name": "tagging"},
            "model": {**SMALL, **changes},
            "optimizer": {"ema_decay": 0.9, **(optimizer or {})},
            "checkpoint": {"best_metric": "valid/loss"},
        }
    )


def save_run(root, config):
    """Saves step 1, the best, and step 2; returns the moving average of step 1, which differs from its parameters."""
    model = build_model(config.model, task_of(config).head(config))
    shapes = nn.unbox(jax.eval_shape(lambda: model.initial_params(jax.random.key(0))))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    with RunDirectory.open(root, config) as directory:
        with Checkpoints(directory.checkpoints_dir, config.checkpoint) as checkpoints:
            for step in (1, 2):
                state = {"params": params, "ema": jax.tree.map(lambda x, factor=step + 1: factor * x, params)}
                checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), {}, {"valid/loss": float(step)})
    return jax.tree.map(lambda x: 2 * x, params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "run"
    return root, save_run(root, masked())


def abstract(config, sizes=None):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if sizes is None else make_mesh(sizes)
    model = build_model(config.model, task_of(config).head(config))
    return abstract_state(config, model, optax.identity(), mesh).params


def body(params) -> dict:
    heads = ("head_product", "head_norm", "output_bias")
    return {name: leaf for name, leaf in flatten(params).items() if not name.startswith(heads)}


@pytest.mark.parametrize("scan", [True, False])
def test_moving_average_of_the_best_step_is_taken_with_stacked_and_unrolled_layers(trained, scan):
    root, saved = trained
    config = tagger(root, scan_layers=scan)
    params = abstract(config, MeshConfig(data=2, fsdp=2, tensor=2))
    initial = load_initial(config, params)
    expected = body(saved if scan else unstack_layers(saved))
    found = flatten(initial.values)
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        assert value.sharding == flatten(params)[name].sharding and value.dtype == np.float32
    layers = "layers" if scan else "layer_*"
    assert initial.lines == [
        f"{len(body(saved))} of the {len(body(saved)) + 2} arrays of this model are initialised from {root}, step 1 "
        "(moving average).",
        "  randomly initialised: classifier (bias, kernel)",
        "  not used: head_norm (bias, scale), head_product (bias, kernel), output_bias (bias)",
    ]
    config = tagger(root, scan_layers=scan, lora_rank=2, activation="relu")
    lines = load_initial(config, abstract(config)).lines
    assert f"{layers}/attention/query (lora_a, lora_b), {layers}/attention/value (lora_a, lora_b)" in lines[1]
    assert lines[3] == "  settings that differ: activation 'gelu' -> 'relu'"


def test_stacked_run_is_initialised_from_an_unrolled_one(tmp_path):
    saved = save_run(tmp_path / "run", masked(scan_layers=False))
    config = tagger(tmp_path / "run")
    found = load_initial(config, abstract(config)).values
    for name, value in flatten(unstack_layers(jax.device_get(found))).items():
        np.testing.assert_array_equal(value, flatten(saved)[name], err_msg=name)
    assert set(flatten(unstack_layers(jax.device_get(found)))) == set(body(saved))


def test_state_and_its_average_start_with_the_loaded_parameters(trained):
    root, saved = trained
    config = tagger(root)
    model = build_model(config.model, task_of(config).head(config))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = make_optimizer(config.optimizer, 10)
    template = abstract_state(config, model, optimizer, mesh)
    fresh = make_state(config, model, optimizer, template, mesh)
    state = with_params(fresh, load_initial(config, template.params).values)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), state, template)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["classifier"]["kernel"], fresh.params["classifier"]["kernel"])
        np.testing.assert_array_equal(tree["layers"]["mlp"]["up"]["kernel"], saved["layers"]["mlp"]["up"]["kernel"])
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        assert one.addressable_shards[0].data.unsafe_buffer_pointer() != (
            other.addressable_shards[0].data.unsafe_buffer_pointer()
        )


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_length": 16},
            "position_embedding/embedding has shape [32, 16] in ROOT and [16, 16] here; set config.model.max_length=32 "
            "(here 16).",
        ),
        (
            {"embedding_width": 8},
            "position_embedding/embedding has shape [32, 16] in ROOT and [32, 8] here; set config.model."
            "embedding_width=0 (here 8).",
        ),
        ({"num_layers": 2}, "has shape [3, 4, 4] in ROOT and [2, 4, 4] here; set config.model.num_layers=3 (here 2)."),
        (
            {"d_ff": 48},
            "layers/mlp/down/kernel has shape [3, 64, 16] in ROOT and [3, 48, 16] here; set config.model.d_ff",
        ),
        (
            {"vocab_size": 40},
            "token_embedding/embedding has shape [32, 16] in ROOT and [40, 16] here; set config.model.v",
        ),
    ],
)
def test_wrong_shape_is_refused_with_the_setting_that_decides_it(trained, changes, message, scan):
    root, _ = trained
    config = tagger(root, scan_layers=scan, **changes)
    with pytest.raises(UserError, match="config.init_from: .*" + re.escape(message.replace("ROOT", str(root)))):
        load_initial(config, abstract(config))


def test_different_labels_and_adapters_are_refused(tmp_path):
    save_run(tmp_path / "tuned", tagger("", lora_rank=2))
    for changes, message in (
        ({}, "has adapters that this model does not have; merge them first"),
        ({"lora_rank": 2, "lora_targets": ("key",)}, "has adapters that this model does not have"),
        ({"lora_rank": 4}, "lora_a has shape .* set config.model.lora_rank=2 .here 4.\\."),
        (
            {"lora_rank": 2, "labels": ("A", "B", "C")},
            "classifier/bias has shape .2. in .* the labels of that run differ",
        ),
    ):
        config = tagger(tmp_path / "tuned", **changes)
        with pytest.raises(UserError, match=message):
            load_initial(config, abstract(config))
    config = tagger(tmp_path / "tuned", lora_rank=2)
    assert len(load_initial(config, abstract(config)).lines) == 1, "all parameters match"


def test_directory_without_a_run_and_model_without_common_parameters_are_refused(trained, tmp_path):
    config = tagger(tmp_path)
    with pytest.raises(UserError, match=r"config.init_from: .* is not a run directory"):
        load_initial(config, {})
    RunDirectory.open(tmp_path, masked()).close()
    with pytest.raises(UserError, match=r"config.init_from: .*there is no checkpoint"):
        load_initial(config, {})
    config = tagger(trained[0])
    leaf = abstract(config)["final_norm"]
    with pytest.raises(
        UserError, match=r"no parameter of .* is in this model \(.*layers.* in that run, other in this one\)"
    ):
        load_initial(config, {"other": leaf})
