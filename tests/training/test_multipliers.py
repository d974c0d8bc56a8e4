"""Learning-rate multipliers in closed form, and frozen parameters, which stay equal to the bit."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.batch import Batch
from lm.config import Config, MeshConfig, ModelConfig
from lm.errors import UserError
from lm.models import build_model
from lm.models.heads import Classes
from lm.models.parameters import stack_layers, unstack_layers
from lm.parallel.mesh import make_mesh
from lm.tasks import task_of
from lm.training.multipliers import all_one, is_frozen, learning_rate_multipliers, stop_frozen
from lm.training.optimizers import make_optimizer
from lm.training.startup import parameter_table
from lm.training.state import abstract_state
from lm.training.step import moving_average
from tests.trees import flatten

N, V = 3, 17
D = np.float32(0.8)  # layer_decay


def config_with(model=None, **optimizer) -> Config:
    tagging = {"kind": "conll", "path": "x"}
    values = {
        "data": {"train": {"a": tagging}, "sequence_length": 8, "labels": ("A", "B"), "holdout": "hash"},
        "objective": {"name": "tagging"},
        "model": {
            "family": "encoder",
            "vocab_size": V,
            "num_layers": N,
            "d_model": 8,
            "num_heads": 2,
            "positions": "learned",
            **(model or {}),
        },
        "optimizer": {"warmup_steps": 0, "schedule": "constant", "learning_rate": 0.1, **optimizer},
        "checkpoint": {"best_metric": "valid/loss"},
    }
    return Config.from_dict(values)


def model_of(config: Config):
    return build_model(config.model, task_of(config).head(config))


def multipliers_of(model=None, **optimizer):
    config = config_with(model, **optimizer)
    return learning_rate_multipliers(config, model_of(config))


@functools.cache
def shapes(model: ModelConfig):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return nn.unbox(jax.eval_shape(lambda k: build_model(model, Classes(2, "none")).initial_params(k), key))


def random_tree(config: Config, seed: int):
    """Returns normals with the same values for stacked and for unrolled layers."""
    rng = np.random.default_rng(seed)
    stacked = shapes(dataclasses.replace(config.model, scan_layers=True))
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), stacked)
    return tree if config.model.scan_layers else unstack_layers(tree)


def test_default_settings_give_multipliers_of_1_and_an_unchanged_program():
    config = config_with()
    multipliers = learning_rate_multipliers(config, model_of(config))
    assert set(multipliers) == set(flatten(shapes(config.model)))
    assert set(multipliers.values()) == {1.0} and all_one(multipliers)
    plain, same = (make_optimizer(config.optimizer, 10, each) for each in (None, multipliers))
    params = shapes(config.model)
    states = [jax.eval_shape(each.init, params) for each in (plain, same)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    programs = [jax.make_jaxpr(each.update)(params, states[0], params) for each in (plain, same)]
    assert str(programs[0]) == str(programs[1])


def test_layer_decay_of_stacked_layers():
    multipliers = multipliers_of(layer_decay=0.8)
    for name, multiplier in multipliers.items():
        if name.startswith("layers/"):
            np.testing.assert_allclose(multiplier, [0.8**3, 0.8**2, 0.8], rtol=1e-6, err_msg=name)
        else:
            wanted = 0.8**4 if "embedding" in name else 1.0
            assert multiplier == pytest.approx(wanted), name
    assert {name.split("/")[0] for name in multipliers} == {
        *("token_embedding", "position_embedding", "layers", "final_norm", "classifier")
    }


def test_layer_decay_of_unrolled_layers():
    multipliers = multipliers_of({"scan_layers": False, "token_types": 2, "norm_embeddings": True}, layer_decay=0.8)
    bottom = ("token_embedding", "type_embedding", "position_embedding", "embedding_norm")
    wanted = dict.fromkeys(bottom, 4) | {"layer_0": 3, "layer_1": 2, "layer_2": 1, "final_norm": 0, "classifier": 0}
    assert {name.split("/")[0]: multiplier for name, multiplier in multipliers.items()} == pytest.approx(
        {name: 0.8**power for name, power in wanted.items()}
    )


def test_encoder_and_decoder_number_their_own_blocks():
    two = {"family": "encoder_decoder", "num_encoder_layers": 2, "positions": "relative"}
    for share in (True, False):
        multipliers = multipliers_of({**two, "share_embeddings": share, "tie_embeddings": share}, layer_decay=0.5)
        np.testing.assert_allclose(multipliers["encoder/layers/mlp/up/kernel"], [0.25, 0.5])
        np.testing.assert_allclose(multipliers["decoder/layers/cross_attention/out/kernel"], [0.125, 0.25, 0.5])
        assert multipliers["encoder/relative_bias/embedding"] == 0.125
        assert multipliers["decoder/relative_bias/embedding"] == 0.0625
        for name in ("encoder/final_norm/scale", "decoder/final_norm/scale", "classifier/bias"):
            assert multipliers[name] == 1
        assert multipliers["token_embedding/embedding"] == 0.0625
        assert multipliers.get("source_embedding/embedding") == (None if share else 0.125)
    multipliers = multipliers_of(two, freeze_layers=2)
    for name in ("encoder/layers/mlp/up/kernel", "decoder/relative_bias/embedding"):
        assert is_frozen(multipliers[name])
    np.testing.assert_array_equal(multipliers["decoder/layers/mlp/up/kernel"], [0, 0, 1])


def test_layer_decay_of_zero_trains_the_head_only():
    multipliers = multipliers_of(layer_decay=0.0)
    assert {name for name, multiplier in multipliers.items() if not is_frozen(multiplier)} == {
        *("final_norm/scale", "final_norm/bias", "classifier/kernel", "classifier/bias")
    }


def test_layers_and_names_are_frozen():
    multipliers = multipliers_of(freeze_layers=2, freeze=("attention/query", "final_norm"), layer_decay=0.5)
    for name in ("token_embedding/embedding", "position_embedding/embedding"):
        assert is_frozen(multipliers[name])
    assert is_frozen(multipliers["layers/attention/query/kernel"]) and is_frozen(multipliers["final_norm/bias"])
    np.testing.assert_array_equal(multipliers["layers/attention/key/kernel"], [0, 0, 0.5])
    assert multipliers["classifier/kernel"] == 1

    deep = {"num_layers": 11, "scan_layers": False}
    multipliers = multipliers_of(deep, freeze=("layer_1", "layer_*/mlp/up"))
    frozen = {name for name, multiplier in multipliers.items() if is_frozen(multiplier)}
    whole = {name for name in multipliers if name.startswith("layer_1/")}
    assert len(whole) > 10 and frozen == whole | {
        f"layer_{n}/mlp/up/{k}" for n in range(11) for k in ("kernel", "bias")
    }


def test_adapters_freeze_the_rest_of_the_body():
    multipliers = multipliers_of({"lora_rank": 2, "lora_targets": ("query", "up")}, layer_decay=0.5, freeze_layers=1)
    trained = {name: multiplier for name, multiplier in multipliers.items() if not is_frozen(multiplier)}
    adapters = {f"layers/{p}/lora_{x}" for p in ("attention/query", "mlp/up") for x in "ab"}
    assert set(trained) == adapters | {"classifier/kernel", "classifier/bias"}
    np.testing.assert_array_equal(trained["layers/mlp/up/lora_a"], [0, 0.25, 0.5])


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (
            {},
            {"freeze": ("atention",)},
            "freeze: no parameter's name contains 'atention'; did you mean attention",
        ),
        ({}, {"freeze": ("zzzz",)}, "contains 'zzzz'; use one of attention, "),
        ({}, {"freeze": ("/",)}, "nothing is left to train"),
        (
            {"lora_rank": 2, "lora_targets": ("gate",)},
            {},
            r"this model has no projection 'gate' \(only a gated",
        ),
    ],
)
def test_settings_that_match_no_parameter_are_refused(model, optimizer, message):
    with pytest.raises(UserError, match=message):
        multipliers_of(model, **optimizer)


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_multipliers_scale_the_updates_of_sgd_exactly(scan):
    model = {"scan_layers": scan}
    config = config_with(model, name="sgd", layer_decay=0.8)
    multipliers = learning_rate_multipliers(config, model_of(config))
    params, grads = random_tree(config, 0), random_tree(config, 1)
    plain, scaled = (make_optimizer(config.optimizer, 10, each) for each in (None, multipliers))
    # Each operation is compiled by itself: in one program the compiler may multiply in another order.
    expected, _ = plain.update(grads, plain.init(params), params)
    found, _ = scaled.update(grads, scaled.init(params), params)
    for name, update in flatten(found).items():
        multiplier = np.asarray(multipliers[name], np.float32)
        by_layer = multiplier.reshape(-1, *[1] * (update.ndim - 1)) if multiplier.ndim else multiplier
        np.testing.assert_array_equal(update, np.asarray(flatten(expected)[name]) * by_layer, err_msg=name)
    assert float(multipliers["token_embedding/embedding"]) == pytest.approx(0.8**4)


def assert_bits(one, two, equal=True):
    same = np.asarray(one).view(np.uint32) == np.asarray(two).view(np.uint32)
    assert same.all() if equal else (not same.any())


@pytest.mark.parametrize(("name", "scan"), [("adamw", True), ("adamw", False), ("muon", True), ("adafactor", True)])
def test_frozen_parameters_stay_equal_to_the_bit(name, scan):
    """Makes three steps with weight decay, clipping, a moving average, and gradients for all parameters."""
    settings = {"name": name, "freeze_layers": 2, "freeze": ("attention/key",), "weight_decay": 0.3, "layer_decay": 0.9}
    config = config_with({"scan_layers": scan}, **settings)
    multipliers = learning_rate_multipliers(config, model_of(config))
    optimizer = make_optimizer(config.optimizer, 10, multipliers)
    start = params = jax.tree.map(np.array, random_tree(config, 0))
    for leaf in jax.tree.leaves(start):
        leaf.flat[0] = -0.0  # + 0.0 would change it
    ema, state = start, optimizer.init(params)
    held = {path for path in flatten(start) if any(each.endswith(path) for each in flatten(state))}
    assert held == {path for path, multiplier in multipliers.items() if not is_frozen(multiplier)}

    @jax.jit
    def step(params, state, ema, grads):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, moving_average(ema, params, 0.7)

    for seed in range(1, 4):
        params, state, ema = step(params, state, ema, random_tree(config, seed))
    in_layers = [flatten(tree if scan else stack_layers(tree)) for tree in (start, params, ema)]
    checked = 0
    for path in in_layers[0]:
        frozen = [True] * N if "attention/key" in path else [True, True, False]
        frozen = frozen if path.startswith("layers/") else ["embedding" in path]
        for layer, still in enumerate(frozen):
            views = [each[path][layer] if path.startswith("layers/") else each[path] for each in in_layers]
            assert_bits(views[0], views[1], still)
            assert_bits(views[0], views[2], still)
            checked += still
    assert checked > 2 * N


def test_gradients_of_frozen_parameters_do_not_count_in_the_norm():
    config = config_with(
        {}, name="sgd", b1=0.0, weight_decay=0.0, clip_norm=1.0, freeze_layers=2, freeze=("final_norm",)
    )
    multipliers = learning_rate_multipliers(config, model_of(config))
    optimizer = make_optimizer(config.optimizer, 10, multipliers)
    params = random_tree(config, 0)
    grads = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), params)  # frozen ones may be anything
    for leaf in jax.tree.leaves(grads["layers"]):
        leaf[2] = 2.0
    jax.tree.map(lambda leaf: leaf.fill(2.0), grads["classifier"])
    trained = sum(leaf[2].size for leaf in jax.tree.leaves(grads["layers"])) + 8 * 2 + 2
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for path, update in flatten(updates).items():
        moved = path.startswith(("layers/", "classifier/"))
        last = update[2] if path.startswith("layers/") else update
        np.testing.assert_allclose(last, -0.1 / np.sqrt(trained) if moved else 0.0, rtol=1e-5, err_msg=path)


@pytest.mark.exhaustive
def test_frozen_gradients_are_0_and_cost_less_and_the_others_are_unchanged():
    def program(scan, **frozen):
        config = config_with({"scan_layers": scan}, **frozen)
        model = model_of(config)
        multipliers = learning_rate_multipliers(config, model)
        ids = np.random.default_rng(0).integers(0, V, (4, 8)).astype(np.int32)
        positions = np.broadcast_to(np.arange(8, dtype=np.int32), ids.shape)
        batch = Batch(ids, ids, np.ones(ids.shape, np.float32), positions, np.ones_like(ids))

        def loss(params):
            return jnp.mean(jnp.square(model.apply({"params": stop_frozen(params, multipliers)}, batch).logits))

        params = random_tree(config, 0)
        return jax.jit(jax.grad(loss)).lower(params), params, multipliers

    flops = {}
    for scan in (True, False):
        for name, freeze in (("none", ()), ("all", ("embedding", "layer"))):
            flops[scan, name] = program(scan, freeze=freeze)[0].cost_analysis()["flops"]
        assert flops[scan, "all"] < 0.5 * flops[scan, "none"]
    lowered, params, _ = program(False)
    expected = lowered.compile()(params)
    for scan in (True, False):
        lowered, params, multipliers = program(scan, freeze_layers=2)
        assert scan or lowered.cost_analysis()["flops"] < 0.7 * flops[scan, "none"]  # a scan computes every layer
        whole = flatten(stack_layers(expected) if scan else expected)
        for name, grad in flatten(lowered.compile()(params)).items():
            multiplier = np.asarray(multipliers[name], np.float32)
            mask = multiplier.reshape(-1, *[1] * (grad.ndim - 1)) if multiplier.ndim else multiplier
            np.testing.assert_allclose(grad, whole[name] * mask, atol=1e-5, rtol=1e-5, err_msg=name)
    assert all(np.any(grad) for grad in jax.tree.leaves(expected))


def test_state_of_trained_parameters_is_sharded_like_them():
    config = config_with({"lora_rank": 2}, ema_decay=0.9)
    model = model_of(config)
    multipliers = learning_rate_multipliers(config, model)
    optimizer = make_optimizer(config.optimizer, 10, multipliers)
    state = abstract_state(config, model, optimizer, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    params, moments = flatten(state.params), flatten(state.opt_state)
    owners = [path for path in moments for name in params if path.endswith(f"/{name}")]
    assert len(owners) == 2 * 6  # two moments; query's and value's adapters, the classifier
    for path in owners:
        (name,) = [each for each in params if path.endswith(f"/{each}")]
        assert moments[path].sharding == params[name].sharding
    spec = params["layers/attention/query/lora_a"].sharding.spec, params["layers/attention/query/lora_b"].sharding.spec
    assert spec[0][:2] == (None, "fsdp") and spec[1][:3] == (None, None, "tensor")  # the rank is whole


def test_parameter_table_shows_the_multipliers():
    def column(config):
        model = model_of(config)
        multipliers = learning_rate_multipliers(config, model)
        optimizer = make_optimizer(config.optimizer, 10, multipliers)
        table = parameter_table(
            abstract_state(config, model, optimizer, make_mesh(MeshConfig(), jax.devices()[:1])).params, multipliers
        )
        cells = {each.header: list(each.cells) for each in table.columns}
        if "multiplier" not in cells:
            return None
        for name, decay, multiplier in zip(cells["parameter"], cells["decay"], cells["multiplier"], strict=True):
            assert not (multiplier == "frozen" and decay), name
        return dict(zip(cells["parameter"], cells["multiplier"], strict=True))

    assert column(config_with()) is None
    for scan, layers in ((True, "layers"), (False, "layer_*")):
        shown = column(config_with({"scan_layers": scan}, layer_decay=0.8, freeze=("embedding",)))
        assert shown[f"{layers}/mlp/up/kernel"] == "0.51 to 0.8"
        assert shown["classifier/kernel"] == "1" and shown["token_embedding/embedding"] == "frozen"
        shown = column(config_with({"scan_layers": scan}, freeze_layers=2))
        assert shown[f"{layers}/mlp/up/kernel"] == "2 frozen, 1"
