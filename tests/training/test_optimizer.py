"""Every optimizer: clipping, weight decay, state, and equal updates for stacked layers and sharded parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lm.config import Config
from lm.costs import estimate_memory
from lm.models import build_model
from lm.models.parameters import count_parameters, matrix_axes
from lm.training.optimizers import global_norm, make_optimizer
from tests.training.parameter_trees import (
    LARGE,
    LOGICAL,
    NAMES,
    RULES,
    SMALL,
    boxed,
    compiled,
    config,
    decay_table,
    letters,
    random_gradients,
    random_tree,
    run_steps,
    unroll,
    zeros_tree,
)
from tests.trees import flatten, nest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stacked", [True, False])
def test_weight_decay_is_decoupled_and_acts_on_decayed_parameters_only(name, stacked):
    """The first direction depends only on the gradients, so updates of different parameters differ by the decay."""
    params, grads = random_tree(0, SMALL), random_tree(1, SMALL)
    if not stacked:
        params, grads = unroll(params), unroll(grads)
    (update,) = run_steps(config(name), params, [grads])
    (at_zero,) = run_steps(config(name), jax.tree.map(np.zeros_like, params), [grads])
    found = flatten(jax.tree.map(np.subtract, update, at_zero))
    for path, decays in decay_table(params).items():
        expected = (-0.1 * 0.1 if decays else 0.0) * flatten(params)[path]
        np.testing.assert_allclose(found[path], expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(("name", "sizes"), [*((name, SMALL) for name in NAMES), ("adafactor", LARGE)])
def test_stacked_layers_get_the_updates_of_unrolled_layers(name, sizes):
    params, gradients = random_tree(0, sizes), random_gradients(name, sizes, 3)
    stacked = run_steps(config(name), params, gradients)
    single = run_steps(config(name), unroll(params), [unroll(grads) for grads in gradients])
    for one, other in zip(stacked, single, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), unroll(one), other)


def test_adamw_matches_its_definition_in_float64():
    """Twenty steps of AdamW with clipping, decay and a schedule, in NumPy and float64."""
    settings = config(
        "adamw", schedule="cosine", learning_rate=1e-2, warmup_steps=5, decay_steps=20, clip_norm=2.0, b2=0.98
    )
    rng = np.random.default_rng(0)
    shapes = {"up/kernel": (5, 7), "up/bias": (7,), "token_embedding/embedding": (6, 5), "norm/scale": (5,)}
    expected = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    params = nest({path: value.astype(np.float32) for path, value in expected.items()})
    first = {path: np.zeros(shape) for path, shape in shapes.items()}
    second = {path: np.zeros(shape) for path, shape in shapes.items()}
    optimizer = compiled(settings)
    state = optimizer.init(params)
    clipped = 0
    for step in range(20):
        scale = rng.exponential()
        grads = {path: (scale * rng.normal(size=shape)).astype(np.float32) for path, shape in shapes.items()}
        updates, state = optimizer.update(nest(grads), state, params)
        params = jax.tree.map(np.add, params, jax.device_get(updates))

        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        clipped += norm > 2.0
        share = (step + 1) / 5 if step < 5 else 0.1 + 0.9 * (1 + np.cos(np.pi * (step - 5) / 15)) / 2
        for path, grad in grads.items():
            g = grad.astype(np.float64) * min(1.0, 2.0 / norm)
            first[path] = 0.9 * first[path] + 0.1 * g
            second[path] = 0.98 * second[path] + 0.02 * g**2
            m, v = first[path] / (1 - 0.9 ** (step + 1)), second[path] / (1 - 0.98 ** (step + 1))
            decay = 0.1 * expected[path] if path in ("up/kernel", "token_embedding/embedding") else 0.0
            expected[path] = expected[path] - 1e-2 * share * (m / (np.sqrt(v) + 1e-8) + decay)
    assert 0 < clipped < 20
    for path, leaf in flatten(params).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-6, err_msg=path)


def test_adamax_matches_its_definition_in_float64():
    """Eight steps of algorithm 2 of Kingma and Ba 2015 with decoupled decay, in NumPy and float64."""
    rng = np.random.default_rng(0)
    params, *gradients = ({"up": {"kernel": rng.normal(size=(5, 7)).astype(np.float32)}} for _ in range(9))
    found = run_steps(config("adamax", b2=0.9, clip_norm=0.0), params, gradients)
    weights, first, largest = params["up"]["kernel"].astype(np.float64), np.zeros((5, 7)), np.zeros((5, 7))
    for step, grads in enumerate(gradients, 1):
        g = grads["up"]["kernel"].astype(np.float64)
        first, largest = 0.9 * first + 0.1 * g, np.maximum(0.9 * largest, np.abs(g))
        expected = -0.1 * (first / (1 - 0.9**step) / largest + 0.1 * weights)
        np.testing.assert_allclose(found[step - 1]["up"]["kernel"], expected, rtol=1e-5, atol=1e-6)
        weights += 0.01 * expected


def test_gradients_are_clipped_before_the_moments_and_never_with_a_clip_norm_of_zero():
    params = {"up": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(3, np.float32)}}
    grads = {"up": {"kernel": np.full((2, 2), 2.0, np.float32), "bias": np.array([0.0, 3.0, 0.0], np.float32)}}
    assert global_norm(grads) == 5.0
    for clip, factor in ((0.0, 1.0), (0.5, 0.1), (10.0, 1.0)):
        settings = config("sgd", weight_decay=0.0, b1=0.0, learning_rate=1.0, clip_norm=clip)
        (update,) = run_steps(settings, params, [grads])
        jax.tree.map(lambda u, g, f=factor: np.testing.assert_allclose(u, -f * g, rtol=1e-6), update, grads)
    # Before the moments: Adam would undo the same scaling of all gradients, but not the scaling of one of several.
    once, large = (
        run_steps(config("adamw", clip_norm=5.0), params, [grads, g])[1]
        for g in (grads, jax.tree.map(lambda g: 2 * g, grads))
    )
    jax.tree.map(np.testing.assert_array_equal, once, large)


def test_global_norm_of_bfloat16_is_summed_in_float32():
    assert global_norm({"a": jnp.ones((100, 100), jnp.bfloat16)}) == 100.0  # a bfloat16 sum would stick at 256
    assert global_norm({"a": jnp.ones(3, jnp.bfloat16)}).dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gradients_give_float32_parameters_and_state(name):
    optimizer = compiled(config(name, learning_rate=1e-4))
    pick = lambda tree: {"layers": {"mlp": tree["layers"]["mlp"]}}  # noqa: E731
    params = pick(random_tree(0, SMALL))
    rounded = jax.tree.map(lambda g: g.astype(jnp.bfloat16), pick(random_tree(1, SMALL)))
    results = []
    for grads in (rounded, jax.tree.map(lambda g: g.astype(np.float32), rounded)):
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        results.append((optax.apply_updates(params, updates), state))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    jax.tree.map(np.testing.assert_array_equal, *results)
    # Bfloat16 parameters of about 1 would not change by steps of 1e-4.
    jax.tree.map(lambda new, old: np.testing.assert_array_less(0.5, np.mean(new != old)), results[0][0], params)


def test_state_counts_the_steps_of_the_schedule():
    settings = config("sgd", b1=0.0, schedule="linear", warmup_steps=2, decay_steps=4, weight_decay=0.0, clip_norm=0.0)
    params, gradients = random_tree(0, SMALL), [random_tree(1, SMALL)] * 6
    updates = run_steps(settings, params, gradients)
    for update, rate in zip(updates, (0.05, 0.1, 0.1, 0.055, 0.01, 0.01), strict=True):
        jax.tree.map(lambda u, g, r=rate: np.testing.assert_allclose(u, -r * g, rtol=1e-5), update, gradients[0])


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_fits_a_regression(name):
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y_BD = jnp.tanh(x_BD @ jnp.asarray(rng.normal(size=(8, 8)) * 0.5, jnp.float32)) + 0.5
    params = nest(
        {
            "layer_0/up/kernel": jnp.asarray(rng.normal(size=(8, 16)) * 0.3, jnp.float32),
            "layer_0/up/bias": jnp.zeros(16),
            "layer_0/down/kernel": jnp.asarray(rng.normal(size=(16, 8)) * 0.3, jnp.float32),
            "layer_0/down/bias": jnp.zeros(8),
        }
    )

    def loss_fn(params):
        layer = params["layer_0"]
        h_BF = jnp.tanh(x_BD @ layer["up"]["kernel"] + layer["up"]["bias"][None])
        return jnp.mean(jnp.square(h_BF @ layer["down"]["kernel"] + layer["down"]["bias"][None] - y_BD))

    rate = {"sgd": 0.3, "lion": 0.01}.get(name, 0.03)
    settings = config(name, schedule="cosine", learning_rate=rate, warmup_steps=5, decay_steps=150, weight_decay=1e-3)
    optimizer = make_optimizer(settings, 150)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = float(loss_fn(params))
    for _ in range(150):
        params, state = step(params, state)
    assert float(loss_fn(params)) < 0.1 * before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("b1", [0.9, pytest.param(0.0, marks=pytest.mark.exhaustive)])
def test_memory_estimate_counts_the_state_of_each_optimizer(name, b1):
    model = {"vocab_size": 4096, "num_layers": 3, "d_model": 1024, "num_heads": 8, "positions": "learned"}
    data = {"train": {"docs": {"kind": "embedded"}}}
    config = Config.from_dict({"data": data, "model": model, "optimizer": {"name": name, "b1": b1}})
    model = build_model(config.model)
    params = jax.eval_shape(lambda key: model.initial_params(key), jax.random.key(0))
    state = jax.eval_shape(make_optimizer(config.optimizer, 10).init, params)
    counted = estimate_memory(config, model, {"data": 1, "fsdp": 1, "tensor": 1}, "cpu").optimizer
    # Counters, and the factored moments of Adafactor, are not counted: less than 1 % of a moment of all parameters.
    assert 4 * count_parameters(state) == pytest.approx(counted, abs=0.01 * 4 * count_parameters(params))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stacked", [True, False])
def test_state_of_boxed_parameters_has_their_logical_axes(name, stacked):
    params = zeros_tree(LARGE, stacked)
    optimizer = make_optimizer(config(name), 100)
    state = jax.eval_shape(optimizer.init, boxed(params))
    specs = nn.get_partition_spec(state)
    plain = jax.eval_shape(optimizer.init, params)
    is_spec = lambda node: isinstance(node, P)  # noqa: E731
    assert jax.tree.structure(specs, is_leaf=is_spec) == jax.tree.structure(plain)
    assert nn.unbox(state) == plain

    shapes = letters(stacked)
    full = 0
    for (path, spec), leaf in zip(
        jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec), jax.tree.leaves(plain), strict=True
    ):
        names = [key.key for key in path if hasattr(key, "key")]
        owner = "/".join(names[names.index("muon") + 1 :] if "muon" in names else names).removeprefix("adam/")
        if owner not in shapes:
            assert leaf.size <= 3 and spec == P(), (path, leaf)  # counts and Muon's coefficients
            continue
        part = getattr(path[-1], "name", None)
        wanted = shapes[owner]
        if part in ("row", "column"):
            inputs, outputs = matrix_axes(tuple(owner.split("/")))
            gone = outputs if part == "row" else inputs
            wanted = "".join(letter for i, letter in enumerate(wanted) if i - len(wanted) not in gone)
        assert leaf.shape == tuple(LARGE[letter] for letter in wanted), path
        assert spec == P(*(LOGICAL[letter] for letter in wanted)), path
        full += 1
    assert full >= len(shapes)


@pytest.mark.parametrize(("name", "sizes"), [("adamw", SMALL), ("muon", SMALL), ("adafactor", LARGE)])
def test_sharded_updates_match_one_device(name, sizes):
    params, gradients = random_tree(0, sizes), random_gradients(name, sizes, 2)
    optimizer = compiled(config(name))
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    logical = nn.get_partition_spec(jax.eval_shape(lambda tree: (tree, optimizer.init(tree)), boxed(params)))
    shardings = nn.logical_to_mesh_sharding(logical, mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state = jax.jit(optimizer.init, out_shardings=shardings[1])(params)
        update, found = jax.jit(optimizer.update, out_shardings=shardings), []
        for grads in gradients:
            sharded = [jax.device_put(tree, shardings[0]) for tree in (grads, params)]
            updates, state = update(sharded[0], state, sharded[1])
            found.append(jax.device_get(updates))
            params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, found[-1])
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert len(split) >= len(jax.tree.leaves(params))
    expected = run_steps(config(name), random_tree(0, sizes), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), found, expected)
