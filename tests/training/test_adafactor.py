"""Adafactor factors each matrix by itself and never mixes layers or heads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.training.optimizers.adafactor import scale_by_factored_rms
from tests.training.parameter_trees import random_tree
from tests.trees import flatten


def test_factored_moments_never_mix_layers_or_heads():
    """There are more layers than anything else, so optax would factor the layer axis here."""
    sizes = {"N": 40, "D": 8, "H": 4, "G": 2, "K": 6, "F": 20, "V": 24, "L": 10}
    params, grads = random_tree(0, sizes), random_tree(1, sizes)
    # Gradients of very different sizes, so that mixing layers would be visible.
    strengths = 10.0 ** np.linspace(-4, 4, 40, dtype=np.float32)
    grads["layers"] = jax.tree.map(lambda g: (g.T * strengths).T, grads["layers"])
    tx = scale_by_factored_rms(b2=0.99, min_size=2)
    state = tx.init(params)
    query, out = (state.moments["layers"]["attention"][name]["kernel"] for name in ("query", "out"))
    assert query.row.shape == (40, 8) and query.column.shape == (40, 4, 6)
    assert out.row.shape == (40, 4, 6) and out.column.shape == (40, 8)
    assert state.moments["layers"]["attention"]["query"]["bias"].shape == (40, 4, 6)
    layers, update = grads["layers"], jax.jit(tx.update)
    updates, _ = update({"layers": layers}, tx.init({"layers": layers}))
    for i in (0, 17, 39):
        alone = {"layer_0": jax.tree.map(lambda g, i=i: g[i], layers)}
        expected, _ = update(alone, tx.init(alone))
        for path, wanted in flatten(expected["layer_0"]).items():
            np.testing.assert_allclose(flatten(updates["layers"])[path][i], wanted, rtol=1e-5, err_msg=path)


def test_adafactor_matches_optax_on_a_matrix():
    rng = np.random.default_rng(0)
    params, *gradients = (
        {"up": {"kernel": (rng.exponential() * rng.normal(size=(130, 170))).astype(np.float32)}} for _ in range(7)
    )
    ours = scale_by_factored_rms(b2=0.99999)
    theirs = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    states, updates = [ours.init(params), theirs.init(params)], [jax.jit(ours.update), jax.jit(theirs.update)]
    for grads in gradients:
        (found, states[0]), (expected, states[1]) = (
            update(grads, state, params) for update, state in zip(updates, states, strict=True)
        )
        np.testing.assert_allclose(found["up"]["kernel"], expected["up"]["kernel"], rtol=2e-5, atol=1e-6)


def test_b2_bounds_the_decay_of_adafactor():
    tx, grads = scale_by_factored_rms(b2=0.5), {"bias": jnp.ones(3)}
    state = tx.init(grads)
    moment = 0.0
    for step in range(1, 8):
        grads = {"bias": jnp.full(3, float(step))}
        _, state = tx.update(grads, state)
        decay = min(0.5, 1 - step**-0.8)
        moment = decay * moment + (1 - decay) * step**2
        np.testing.assert_allclose(state.moments["bias"], moment, rtol=1e-5)


def test_adafactor_updates_of_rows_without_gradient_are_zero():
    """Tokens that are not in a batch have a gradient of 0, beside others with a large one."""
    params = {"token_embedding": {"embedding": jnp.zeros((200, 130))}}
    grads = {"token_embedding": {"embedding": jnp.zeros((200, 130)).at[3].set(1e6)}}
    tx = scale_by_factored_rms(b2=0.99)
    updates, _ = tx.update(grads, tx.init(params))
    found = updates["token_embedding"]["embedding"]
    assert np.isfinite(found).all() and (found[3] > 0).all() and (found[4] == 0).all()
