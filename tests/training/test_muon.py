"""Which updates Muon orthogonalises, and how well."""

import jax
import numpy as np
import optax
import pytest

from lm.training.optimizers.matrices import UPDATE_RMS
from tests.training.parameter_trees import SMALL, config, random_tree, run_steps, two_sided
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
