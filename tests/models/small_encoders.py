"""Small encoders, their parameters and rows of random texts, shared by the tests in this folder."""

import dataclasses
import functools
import zlib

import flax.linen as nn
import jax
import numpy as np

from lm.batch import Batch, Source
from lm.config import ModelConfig
from lm.models import build_model
from lm.models.heads import Head, MaskedTokens
from lm.models.parameters import abstract_params, unstack_layers
from tests.small_model import small_config
from tests.trees import flatten, nest

V, D, L = 29, 16, 12
MASKED, NEXT_SENTENCE = MaskedTokens(), MaskedTokens(next_sentence=True)
ENCODER = small_config(V, 16, family="encoder", num_layers=2, d_model=D, num_kv_heads=1, d_ff=24)
BERT = dataclasses.replace(
    ENCODER,
    positions="learned",
    token_types=2,
    norm_position="post",
    norm_embeddings=True,
    head_transform=True,
    output_bias=True,
    pooler=True,
)
# Layers 0 and 2 attend to all tokens, the others to two tokens on either side.
MODERN = dataclasses.replace(
    ENCODER,
    num_layers=4,
    norm="rmsnorm",
    use_bias=False,
    activation="geglu",
    window=3,
    global_every=2,
    local_rotary_theta=100.0,
)


@functools.cache
def random_params(config: ModelConfig, head: Head = MASKED) -> dict:
    """Returns parameters drawn by name, so that models share those with equal names, whether stacked or not."""
    stacked = dataclasses.replace(config, scan_layers=True)
    shapes = nn.unbox(abstract_params(build_model(stacked, head)))

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng(zlib.crc32(path.encode())).normal(0.0, 0.3, shape).astype(np.float32)
        return 1 + values if path.endswith("scale") else values

    params = nest({path: draw(path, leaf.shape) for path, leaf in flatten(shapes).items()})
    return params if config.scan_layers else unstack_layers(params)


def texts(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(sizes))
    return [rng.integers(3, V, size).astype(np.int32) for size in sizes]


def rows_of(rows: list[list[np.ndarray]], length: int = L) -> Batch:
    """Returns rows of texts, each one segment. Types are 1 in the second half of a text; padding has random tokens."""
    rng = np.random.default_rng(7)
    segments, positions, types = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    tokens = rng.integers(0, V, segments.shape).astype(np.int32)
    for row, row_texts in enumerate(rows):
        start = 0
        for number, text in enumerate(row_texts, start=1):
            here = slice(start, start + len(text))
            tokens[row, here], segments[row, here], positions[row, here] = text, number, np.arange(len(text))
            types[row, start + len(text) // 2 : start + len(text)] = 1
            start += len(text)
    return Batch(tokens, tokens, (segments > 0).astype(np.float32), positions, segments, types=types)


def source_of(batch: Batch) -> Source:
    return Source(batch.tokens, batch.positions, batch.segments)


@functools.cache
def applied(config: ModelConfig, head: Head = MASKED):
    """Returns a compiled function (params, batch) -> Output."""
    return jax.jit(lambda params, batch: build_model(config, head).apply({"params": params}, batch))
