"""The vectors of tokens after each layer equal the outputs of the blocks in a whole forward pass."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm.batch import Batch, Output, Source
from lm.models import build_model
from lm.models.heads import Classes, NextToken
from lm.models.parameters import unstack_layers
from lm.models.transformer.stack import Block
from tests.small_model import small_config

SMALL = small_config(11, 6, num_layers=3, num_encoder_layers=3, d_model=8, init_std=0.5, scan_layers=False)
TOKENS = np.random.default_rng(0).integers(1, 11, (2, 6)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]], np.int32)


def batch_of(source: bool) -> Batch:
    one = Source(TOKENS, POSITIONS, SEGMENTS)
    return Batch(TOKENS, TOKENS, np.ones(TOKENS.shape, np.float32), POSITIONS, SEGMENTS, one if source else None)


def outputs_of_blocks(model, params, batch) -> list:
    """Returns the output of each block of the encoder, or of the only tower, in a forward pass of the whole model."""
    _, found = model.apply(
        {"params": params},
        batch,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, Block),
    )
    found = found["intermediates"].get("encoder", found["intermediates"])
    return [found[f"layer_{n}"]["__call__"][0][0] for n in range(3)]


@pytest.mark.parametrize(
    ("family", "scanned", "changes"),
    [
        ("decoder", True, {"positions": "learned"}),
        ("encoder", True, {"positions": "rotary", "norm_position": "post", "window": 2, "global_every": 2}),
        ("encoder_decoder", False, {"positions": "relative"}),
        (
            "encoder_decoder",
            True,
            {"positions": "sinusoidal", "share_embeddings": False, "source_vocab_size": 12},
        ),
    ],
)
def test_vectors_equal_the_outputs_of_the_blocks(family, scanned, changes):
    config = dataclasses.replace(SMALL, family=family, **changes)
    batch = batch_of(source=family == "encoder_decoder")
    head = Classes(2, "mean") if family == "encoder" else NextToken()
    stored = build_model(dataclasses.replace(config, scan_layers=scanned), head)
    params = nn.unbox(stored.initial_params(jax.random.key(1)))
    blocks = outputs_of_blocks(build_model(config, head), unstack_layers(params), batch)
    assert stored.text_layers == 3
    real = SEGMENTS > 0
    for layer in (1, 2):
        found = np.asarray(stored.token_vectors({"params": params}, batch, layer))
        np.testing.assert_allclose(found[real], np.asarray(blocks[layer - 1])[real], rtol=1e-5, atol=1e-5)
    last = np.asarray(stored.token_vectors({"params": params}, batch, 3))
    expected = np.asarray(blocks[2])
    if config.norm_position == "pre":  # the last norm, whose initial scale is 1, follows
        expected = expected - expected.mean(-1, keepdims=True)
        expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + config.norm_epsilon)
    np.testing.assert_allclose(last[real], expected[real], rtol=1e-4, atol=1e-4)


def test_layer_zero_is_the_embedding_with_positions():
    model = build_model(dataclasses.replace(SMALL, family="decoder", positions="learned"), NextToken())
    params = nn.unbox(model.initial_params(jax.random.key(1)))
    found = model.token_vectors({"params": params}, batch_of(False), 0)
    tables = [next(iter(jax.tree.leaves(params[name]))) for name in ("token_embedding", "position_embedding")]
    np.testing.assert_allclose(found, tables[0][TOKENS] + tables[1][POSITIONS], rtol=1e-6)


def test_recording_adds_nothing_to_other_calls():
    model = build_model(dataclasses.replace(SMALL, family="decoder"), NextToken())
    variables = model.init({"params": jax.random.key(1)}, batch_of(False))
    assert set(variables) == {"params"}
    assert isinstance(model.apply(variables, batch_of(False)), Output)
