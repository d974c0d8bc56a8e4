"""Matrices in 8 bits: the published formula, and logits close to those of the float32 parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Source
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.sampling import Vocabulary
from lm.models import build_model
from lm.models.int8 import Int8Matrix
from lm.models.parameters import with_int8_matrices
from lm.models.products import product
from tests.small_model import random_params, small_config

CONFIG = small_config(64, 16, num_layers=2, d_model=32, num_heads=4, num_encoder_layers=1)
VARIANTS = {
    "tied": {"family": "decoder", "tie_embeddings": True, "scan_layers": True},
    "untied_adapters": {"family": "decoder", "tie_embeddings": False, "lora_rank": 2, "lora_targets": ("query", "up")},
    "two_sided": {"family": "encoder_decoder", "tie_embeddings": True, "scan_layers": False, "share_embeddings": False},
    "bfloat16": {"family": "decoder", "tie_embeddings": True, "dtype": "bfloat16", "activation_dtype": "compute"},
}


def test_each_output_channel_is_rounded_to_its_own_127_steps():
    matrix = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32) * np.array([1, 10, 0, 0.01])
    for axes in ((0,), (0, 1)):
        found = Int8Matrix.of(matrix.astype(np.float32), axes)
        highest = np.abs(matrix).max(axis=axes, keepdims=True)
        np.testing.assert_allclose(found.scales, np.where(highest > 0, highest / 127, 1), rtol=1e-6)
        assert np.abs(found.values).max() == 127 and found.values.dtype == np.int8
        error = np.abs(matrix - np.asarray(found.values) * np.asarray(found.scales))
        assert (error <= 0.5001 * np.asarray(found.scales)).all()


def test_product_equals_that_of_the_rounded_matrix():
    random = np.random.default_rng(1)
    matrix, x_TI = (random.normal(size=size).astype(np.float32) for size in ((3, 4, 5), (7, 12)))
    rounded = Int8Matrix.of(matrix, (0, 1))
    dense = (np.asarray(rounded.values) * np.asarray(rounded.scales)).reshape(12, 5)
    np.testing.assert_allclose(product(x_TI, rounded, "float32"), x_TI @ dense, rtol=1e-5, atol=1e-5)
    # With one input at a time, nothing is rounded, not even the scales; the result is rounded only if x is in bfloat16.
    for dtype in (jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(product(np.eye(12, dtype=dtype), rounded, "bfloat16"), dense.astype(dtype))
    table = Int8Matrix.of(matrix[0], (-1,))
    np.testing.assert_allclose(table.rows(np.array([2, 0])), matrix[0][[2, 0]], atol=float(table.scales.max()) / 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_close_to_those_of_the_float32_parameters(name):
    """The errors of the weights, at most 1/254 of the largest in a channel, are independent and largely cancel."""
    model = build_model(dataclasses.replace(CONFIG, **VARIANTS[name]))
    params = random_params(model, 0.2, scale=1.0)
    small = jax.jit(with_int8_matrices)(params)
    ids_BL = np.random.default_rng(2).integers(3, 64, (4, 12))
    positions_BL, ones_BL = np.broadcast_to(np.arange(12), (4, 12)), np.ones((4, 12), np.int32)
    source = Source(ids_BL[:, ::-1], positions_BL, ones_BL) if model.reads_source else None
    batch = Batch(ids_BL, ids_BL, ones_BL.astype(np.float32), positions_BL, ones_BL, source)
    apply = jax.jit(lambda params: model.apply({"params": params}, batch).logits)
    whole, rounded = (np.asarray(apply(each), np.float32) for each in (params, small))
    assert 0 < np.sqrt(np.mean((whole - rounded) ** 2)) < 0.03 * np.std(whole)
    for path, leaf in jax.tree_util.tree_leaves_with_path(small, is_leaf=lambda each: isinstance(each, Int8Matrix)):
        assert isinstance(leaf, Int8Matrix) == (path[-1].key in {"kernel", "embedding"}), path
    sizes = [sum(each.nbytes for each in jax.tree.leaves(tree)) for tree in (small, params)]
    assert sizes[0] < 0.45 * sizes[1]  # a quarter, and the scales, biases and norms of a tiny model


def test_beam_search_runs_with_8_bits():
    model = build_model(dataclasses.replace(CONFIG, **VARIANTS["two_sided"]))
    params = random_params(model, 0.3, scale=1.0)
    vocabulary, settings = Vocabulary(64, 1, 2), BeamSettings(num_beams=2, max_new_tokens=6)
    sources = [[5, 9, 2], [7, 2]]
    whole, rounded = (
        beam_search(model, each, sources, settings, vocabulary) for each in (params, with_int8_matrices(params))
    )
    for (a,), (b,) in zip(whole, rounded, strict=True):
        assert abs(a.score - b.score) < 0.05 * abs(a.score)
