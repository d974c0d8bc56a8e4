"""What a run takes over from another one (config.init_from), and what is told and refused."""

import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, MeshConfig
from lm.errors import UserError
from lm.runs.initialisation import load_initial
from lm.models.transformer.stack import unstack_layers
from lm.models.transformer.wiring import build_model, initial_params
from lm.parallel.mesh import make_mesh
from lm.runs.directory import RunDirectory
from lm.training.optimizers.chain import make_optimizer
from lm.training.state import abstract_state, make_state, with_params
from tests.trees import flatten

SMALL = {"family": "encoder", "vocab_size": 32, "num_layers": 3, "d_model": 16, "num_heads": 4, "max_length": 32}
SMALL |= {"positions": "learned"}


def masked(**changes) -> Config:
    """What pre-trains."""
    return Config.from_dict(
        {
            "data": {"train": {"a": {"kind": "embedded"}}, "sequence_length": 32, "tokenizer": {"extra_ids": 1}},
            "objective": {"name": "masked"},
            "model": {**SMALL, "head_transform": True, "output_bias": True, **changes},
            "optimizer": {"ema_decay": 0.9},
        }
    )


def tagger(root, optimizer=None, **changes) -> Config:
    """What begins with it."""
    return Config.from_dict(
        {
            "init_from": str(root),
            "data": {
                "train": {"a": {"kind": "conll", "path": "x"}},
                "sequence_length": 16,
                "labels": ("A", "B"),
                "holdout": "hash",
            },
            "objective": {"name": "tagging"},
            "model": {**SMALL, **changes},
            "optimizer": {"ema_decay": 0.9, **(optimizer or {})},
            "checkpoint": {"best_metric": "valid/loss"},
        }
    )


def save_run(root, config):
    """Its best step is 1 and its latest 2; the averages are not the parameters. Gives those of step 1."""
    shapes = nn.unbox(jax.eval_shape(lambda: initial_params(build_model(config.model), jax.random.key(0))))
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
    return abstract_state(config, build_model(config.model), optax.identity(), mesh).params


def body(params) -> dict:
    heads = ("head_product", "head_norm", "output_bias")
    return {name: leaf for name, leaf in flatten(params).items() if not name.startswith(heads)}


@pytest.mark.parametrize("scan", [True, False])
def test_the_average_of_the_best_step_is_taken_stacked_or_not(trained, scan):
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
        f"Parameters of {root}, step 1 (moving average): {len(body(saved))} of {len(body(saved)) + 2} kinds are taken.",
        "  new, random: classifier (bias, kernel)",
        "  not used: head_norm (bias, scale), head_product (bias, kernel), output_bias (bias)",
    ]
    config = tagger(root, scan_layers=scan, lora_rank=2, activation="relu")
    lines = load_initial(config, abstract(config)).lines
    assert f"{layers}/attention/query (lora_a, lora_b), {layers}/attention/value (lora_a, lora_b)" in lines[1]
    assert lines[3] == "  settings that differ: activation 'gelu' -> 'relu'"


def test_an_unrolled_run_begins_a_stacked_one(tmp_path):
    saved = save_run(tmp_path / "run", masked(scan_layers=False))
    config = tagger(tmp_path / "run")
    found = load_initial(config, abstract(config)).values
    for name, value in flatten(unstack_layers(jax.device_get(found))).items():
        np.testing.assert_array_equal(value, flatten(saved)[name], err_msg=name)
    assert set(flatten(unstack_layers(jax.device_get(found)))) == set(body(saved))


def test_a_state_begins_with_them_and_so_does_its_average(trained):
    root, saved = trained
    config = tagger(root)
    model, mesh = build_model(config.model), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
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
def test_a_wrong_shape_is_told(trained, changes, message, scan):
    root, _ = trained
    config = tagger(root, scan_layers=scan, **changes)
    with pytest.raises(UserError, match="config.init_from: .*" + re.escape(message.replace("ROOT", str(root)))):
        load_initial(config, abstract(config))


def test_other_labels_and_adapters_are_told(tmp_path):
    save_run(tmp_path / "tuned", tagger("", lora_rank=2))
    for changes, message in (
        ({}, "has adapters and this model has not those; merge them first"),
        ({"lora_rank": 2, "lora_targets": ("key",)}, "has adapters and this model has not those"),
        ({"lora_rank": 4}, "lora_a has shape .* set config.model.lora_rank=2 .here 4.\\."),
        ({"lora_rank": 2, "num_classes": 3}, "classifier/bias has shape .2. in .* its labels are others"),
    ):
        config = tagger(tmp_path / "tuned", **changes)
        with pytest.raises(UserError, match=message):
            load_initial(config, abstract(config))
    config = tagger(tmp_path / "tuned", lora_rank=2)
    assert len(load_initial(config, abstract(config)).lines) == 1  # everything


def test_what_is_no_run_or_has_nothing_in_common(trained, tmp_path):
    config = tagger(tmp_path)
    with pytest.raises(UserError, match=r"config.init_from: .* is not a run directory"):
        load_initial(config, {})
    RunDirectory.open(tmp_path, masked()).close()
    with pytest.raises(UserError, match=r"config.init_from: .*there is no checkpoint"):
        load_initial(config, {})
    config = tagger(trained[0])
    leaf = abstract(config)["final_norm"]
    with pytest.raises(UserError, match=r"no parameter of .* is in this model \(.*layers.* there, other here\)"):
        load_initial(config, {"other": leaf})
