"""Scanned and unrolled layers have the same loss and gradients, with every rematerialisation policy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.config import ObjectiveConfig
from lm.models import build_model
from lm.models.parameters import abstract_params, stack_layers, unstack_layers
from lm.models.transformer.remat import REMAT_POLICIES
from lm.objectives.losses import loss_sums
from tests.small_model import random_params, small_config

CONFIG = small_config(29, 8, num_layers=2, num_heads=4)


def loss_and_gradients(config, params):
    """Returns the loss and the gradients in unrolled form."""
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 29, (2, 8)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(8)[None], (2, 8))
    batch = Batch(tokens, jnp.roll(tokens, -1, 1), jnp.ones((2, 8)), positions, 1 + (positions > 4).astype(jnp.int32))

    def loss(params):
        logits = build_model(config).apply({"params": params}, batch, train=True).logits
        sums = loss_sums(logits, batch, ObjectiveConfig())
        return sums.loss / sums.weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return value, unstack_layers(gradients) if config.scan_layers else gradients


@pytest.fixture(scope="module")
def reference():
    params = random_params(build_model(CONFIG))
    return params, *loss_and_gradients(dataclasses.replace(CONFIG, scan_layers=False), unstack_layers(params))


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        (True, "none"),
        pytest.param(True, "full", marks=pytest.mark.exhaustive),
        pytest.param(True, "dots", marks=pytest.mark.exhaustive),
        (False, "dots"),
        (True, "dots_and_attention"),
        pytest.param(False, "attention", marks=pytest.mark.exhaustive),
        pytest.param(True, "attention_output", marks=pytest.mark.exhaustive),
    ],
)
def test_scan_and_remat_keep_loss_and_gradients(scan, remat, reference):
    params, expected_loss, expected = reference
    config = dataclasses.replace(CONFIG, scan_layers=scan, remat=remat)
    loss, gradients = loss_and_gradients(config, params if scan else unstack_layers(params))
    assert float(loss) == pytest.approx(float(expected_loss), abs=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), gradients, expected)


def test_remat_policies_store_less_for_the_backward_pass():
    """Counts the values that jax.vjp stores: all, some results of matrix multiplications, or only the block's input."""

    def held(remat):
        config = dataclasses.replace(CONFIG, remat=remat, scan_layers=False)
        params = random_params(build_model(config))
        ids = jnp.zeros((2, 8), jnp.int32)
        batch = Batch(ids, ids, jnp.ones((2, 8)), ids, ids + 1)

        def backward(params):
            return jax.vjp(lambda p: build_model(config).apply({"params": p}, batch, train=True).logits, params)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, params)))

    sizes = {name: held(name) for name in ("none", *REMAT_POLICIES)}
    assert sorted(sizes, key=lambda name: sizes[name]) == [*REMAT_POLICIES, "none"]


def test_stacking_and_unstacking_undo_each_other():
    params = random_params(build_model(CONFIG))
    unrolled = unstack_layers(params)
    shapes = jax.eval_shape(
        lambda key: build_model(dataclasses.replace(CONFIG, scan_layers=False)).initial_params(key), jax.random.key(0)
    )
    assert jax.tree.map(jnp.shape, unrolled) == jax.tree.map(jnp.shape, nn.unbox(shapes))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unrolled), params)


def test_more_than_nine_layers_stay_in_order():
    """Checks that layer_10 follows layer_9, not layer_1."""
    config = dataclasses.replace(CONFIG, num_layers=12)
    params = random_params(build_model(config))
    unrolled = unstack_layers(params)
    assert list(unrolled)[-1] == "layer_11"
    bias = stack_layers(unrolled)["layers"]["mlp"]["down"]["bias"]
    np.testing.assert_array_equal(bias, params["layers"]["mlp"]["down"]["bias"])


@pytest.mark.parametrize("scan", [True, False])
def test_scanned_weights_carry_the_layers_axis(scan):
    config = dataclasses.replace(CONFIG, scan_layers=scan)
    boxed = abstract_params(build_model(config))
    kernel = boxed["layers" if scan else "layer_0"]["attention"]["query"]["kernel"]
    assert kernel.names == ("layers", "embed", "heads", "head_dim")[0 if scan else 1 :]
    assert len(kernel.names) == len(kernel.value.shape)


def test_scanned_and_unrolled_caches_are_equal():
    params, ids = random_params(build_model(CONFIG)), jnp.array([[3, 1, 4]])
    batch = Batch(ids, ids, jnp.ones((1, 3)), jnp.arange(3)[None], jnp.ones((1, 3), jnp.int32))
    unrolled = dataclasses.replace(CONFIG, scan_layers=False)

    def filled(config, params):
        cache = build_model(config).empty_cache(1, 4)
        return jax.jit(lambda p, b, c: build_model(config).apply({"params": p}, b, cache=c).cache)(params, batch, cache)

    scanned, single = filled(CONFIG, params), filled(unrolled, unstack_layers(params))
    for n in range(CONFIG.num_layers):
        np.testing.assert_allclose(scanned.layers.keys[n], single.layers[n].keys, atol=1e-6)
    np.testing.assert_array_equal(scanned.segments, single.segments)
