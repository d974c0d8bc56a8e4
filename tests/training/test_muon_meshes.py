"""Muon on meshes of eight devices: the updates of one device, little more work than AdamW, and a divided momentum."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.program_cost import ProgramCost, program_cost
from lm.config import Config, defaults, source
from lm.models import build_model
from lm.models.parameters import logical_axes
from lm.models.presets import preset
from lm.parallel.mesh import make_mesh, on_mesh
from lm.tasks import task_of
from lm.training.names import map_with_path
from lm.training.optimizers import make_optimizer
from lm.training.state import abstract_state
from lm.training.step import compile_train_step
from tests.trees import flatten

ONE_DEVICE = (1, 1, 1)
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
STEPS = 3


def config_with(
    mesh: tuple[int, int, int], optimizer: str = "muon", rows: int = 128, length: int = 64, **model
) -> Config:
    values = defaults()
    values.data.train.docs = source(kind="embedded")
    values.data.sequence_length = length
    values.train.update(batch_size=rows, num_steps=10)
    values.optimizer.update(name=optimizer, schedule="constant", learning_rate=1.0, warmup_steps=0)
    values.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    sizes = {"vocab_size": 64, "num_layers": 3, "d_model": 64, "num_heads": 8, "activation": "swiglu"}
    values.model.update({**sizes, **model})
    return Config.from_dict(values.to_dict())


def normals(path: tuple, leaf: jax.ShapeDtypeStruct, step: int) -> jax.Array:
    rng = np.random.default_rng(zlib.crc32(f"{path} {step}".encode()))
    return jax.device_put(rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding)


def updates_on(config: Config) -> tuple[list[dict], dict]:
    """Returns the updates of parameters 0, without weight decay, and the momentum after them."""
    mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.data * config.mesh.fsdp * config.mesh.tensor])
    model = build_model(config.model, task_of(config).head(config))
    optimizer = make_optimizer(config.optimizer, STEPS, None, logical_axes(model))
    abstract = abstract_state(config, model, optimizer, mesh)
    params, state = (jax.tree.map(lambda x: x.sharding, each) for each in (abstract.params, abstract.opt_state))
    found = []
    with on_mesh(mesh):
        zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape), abstract.params), out_shardings=params)()
        moments = jax.jit(optimizer.init, out_shardings=state)(zeros)
        update = jax.jit(optimizer.update, out_shardings=(params, state))
        for step in range(STEPS):
            grads = map_with_path(functools.partial(normals, step=step), abstract.params)
            updates, moments = update(grads, moments, zeros)
            found.append(jax.device_get(updates))
    return found, moments[2].inner_states["muon"].inner_state.mu


@functools.cache
def on_one_device(**model) -> list[dict]:
    return updates_on(config_with(ONE_DEVICE, **model))[0]


@pytest.mark.parametrize(
    ("mesh", "scan"),
    [
        ((2, 2, 2), True),
        *(pytest.param(mesh, True, marks=pytest.mark.exhaustive) for mesh in MESHES[:3]),
        *(pytest.param(mesh, False, marks=pytest.mark.exhaustive) for mesh in MESHES),
    ],
)
def test_divided_updates_are_those_of_one_device(mesh, scan):
    updates, momentum = updates_on(config_with(mesh, scan_layers=scan))
    expected = on_one_device(scan_layers=scan)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), updates, expected)
    root_mean_squares = jax.tree.map(lambda x: float(np.sqrt(np.mean(np.square(x)))), flatten(expected[0]))
    for path in flatten(momentum):  # so the tolerance is 5e-5 of a typical value
        assert 0.1 < root_mean_squares[path] < 0.3, path
    for path, leaf in flatten(momentum).items():
        assert 8 * leaf.addressable_shards[0].data.size == leaf.size, (path, leaf.sharding.spec)


@pytest.mark.exhaustive
def test_matrices_that_the_devices_do_not_divide_are_orthogonalised_on_each_device():
    sizes = {"d_model": 12, "num_heads": 2, "num_kv_heads": 2, "head_dim": 6, "d_ff": 20}
    updates, momentum = updates_on(config_with((8, 1, 1), **sizes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), updates, on_one_device(**sizes))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(momentum))


def cost_of_step(config: Config) -> ProgramCost:
    mesh = make_mesh(config.mesh)
    model = build_model(config.model, task_of(config).head(config))
    optimizer = make_optimizer(config.optimizer, config.train.num_steps, None, logical_axes(model))
    abstract = abstract_state(config, model, optimizer, mesh)
    return program_cost(compile_train_step(config, model, optimizer, abstract, mesh).as_text())


def check_cost(make_config) -> None:
    """Checks that a step with Muon costs each device at most 1.15 times the FLOPs and bytes sent of AdamW's."""
    adamw, muon = (cost_of_step(make_config(name)) for name in ("adamw", "muon"))
    ratios = muon.product_flops / adamw.product_flops, muon.total_sent / adamw.total_sent
    print(f"FLOPs x {ratios[0]:.4f}, bytes sent x {ratios[1]:.4f}", adamw, muon)
    assert 1.0 < ratios[0] < 1.15 and ratios[1] < 1.15, (ratios, adamw, muon)


@pytest.mark.parametrize(
    ("mesh", "scan"),
    [
        ((2, 2, 2), True),
        *(pytest.param(mesh, True, marks=pytest.mark.exhaustive) for mesh in MESHES[:3]),
        *(pytest.param(mesh, False, marks=pytest.mark.exhaustive) for mesh in MESHES),
    ],
)
def test_step_costs_little_more_than_with_adamw(mesh, scan):
    """Eight devices divide the 16 square and 8 other matrices evenly; otherwise, zeros would be exchanged as well."""
    check_cost(lambda name: config_with(mesh, name, num_layers=4, activation="gelu", scan_layers=scan))


@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", MESHES[:2] + MESHES[3:])
def test_step_of_gpt2_costs_little_more_than_with_adamw(mesh):
    """The model of configs/gpt2_124m.py with 64 rows of 1,024 tokens, which are few: more rows hide Muon's work."""
    model = {**preset("gpt2_124m"), "vocab_size": 50_304, "dtype": "bfloat16", "remat": "dots"}
    check_cost(lambda name: config_with(mesh, name, rows=64, length=1024, **model))
