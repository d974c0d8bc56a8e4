"""Which updates Muon orthogonalises, and how well."""

import jax
import numpy as np
import optax
import pytest

from lm.models.parameters import matrix_axes
from lm.training.names import map_with_path
from lm.training.optimizers.muon import UPDATE_RMS, scale_by_muon, to_update_rms
from tests.training.parameter_trees import SMALL, config, random_tree, run_steps, two_sided, unroll
from tests.trees import flatten


@pytest.mark.parametrize("has_source", [False, True])
def test_muon_orthogonalises_each_block_matrix_and_nothing_else(has_source):
    grads = random_tree(1, SMALL)
    if has_source:
        tree = two_sided(seed=1)
        block = {"cross_attention": tree["decoder"]["layers"]["cross_attention"]}
        grads = {"decoder": {"layers": block}, "source_embedding": tree["source_embedding"]}
    params = jax.tree.map(np.zeros_like, grads)  # so that nothing decays
    (muon,) = run_steps(config("muon"), params, [grads])
    (adamw,) = run_steps(config("adamw"), params, [grads])
    for path, update in flatten(muon).items():
        if not ("layers" in path.split("/") and path.endswith("/kernel")):
            np.testing.assert_allclose(update, flatten(adamw)[path], rtol=1e-6, err_msg=path)
            continue
        inputs = 1 if not path.endswith("out/kernel") else 2
        for layer in np.asarray(update):
            matrix = layer.reshape(int(np.prod(layer.shape[:inputs])), -1)
            singular = np.linalg.svd(matrix, compute_uv=False) / (0.1 * UPDATE_RMS * max(matrix.shape) ** 0.5)
            assert 0.4 < singular.min() and singular.max() < 1.4, (path, singular)


def test_muon_matches_optax_on_plain_matrices():
    rng = np.random.default_rng(0)
    shapes = {"up": (8, 20), "down": (20, 8)}
    params, *gradients = (
        {"layer_0": {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}}
        for _ in range(4)
    )
    found = run_steps(config("muon", clip_norm=0.0), params, gradients)
    theirs = optax.contrib.muon(0.1, beta=0.9, weight_decay=0.1, consistent_rms=0.2)
    state, update = theirs.init(params), jax.jit(theirs.update)
    for grads, step in zip(gradients, found, strict=True):
        expected, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + np.float32(0.01) * u, params, jax.device_get(expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), step, expected)


@pytest.mark.parametrize("stacked", [True, False])
def test_muon_equals_optax_to_the_bit_on_one_device(stacked):
    """With kernels of three axes too, for any number of layers, whether stacked or not."""

    def axes(tree):
        return map_with_path(lambda path, _: optax.contrib.MuonDimensionNumbers(*matrix_axes(path)), tree)

    def kernels(seed):
        tree = random_tree(seed, SMALL)["layers"]
        tree = {
            part: {name: {"kernel": each["kernel"]} for name, each in tree[part].items()}
            for part in ("attention", "mlp")
        }
        return {"layers": tree} if stacked else unroll({"layers": tree})

    theirs = optax.contrib.scale_by_muon(beta=0.9, weight_dimension_numbers=axes)
    scaled = optax.chain(theirs, optax.stateless(lambda tree, _: map_with_path(to_update_rms, tree)))
    found = []
    for each in (scaled, scale_by_muon(0.9)):
        state, update, steps = each.init(kernels(0)), jax.jit(each.update), []
        for seed in range(3):
            step, state = update(kernels(seed), state)
            steps.append(step)
        found.append((steps, jax.tree.leaves(state)))
    jax.tree.map(np.testing.assert_array_equal, *found)
