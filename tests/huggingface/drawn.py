"""Random weights and rows for comparisons with models of `transformers`."""

from __future__ import annotations

import zlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lm.batch import Batch, Source
from lm.config import ModelConfig
from lm.models import build_model
from lm.models.heads import Head
from tests.trees import flatten, nest


def drawn_params(config: ModelConfig, head: Head | None = None) -> dict[str, Any]:
    """Returns random parameters, also of norms and biases, with which attention is far from uniform."""
    shapes = nn.unbox(jax.eval_shape(lambda: build_model(config, head).initial_params(jax.random.key(0))))

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape)
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            return values * 1.2 / np.sqrt(np.prod(shape[: 2 if "/out/" in path else 1]))
        return 0.3 * values + (kind == "scale" and not config.norm_unit_offset)

    return nest({path: draw(path, leaf.shape).astype(np.float32) for path, leaf in flatten(shapes).items()})


def drawn_rows(lengths: tuple[int, ...], vocab_size: int, seed: int = 0) -> Source:
    """Returns one row of random tokens for each length, padded on the right."""
    tokens_BL = np.random.default_rng(seed).integers(3, vocab_size, (len(lengths), max(lengths))).astype(np.int32)
    segments_BL = (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.int32)
    positions_BL = np.broadcast_to(np.arange(max(lengths), dtype=np.int32), tokens_BL.shape)
    return Source(tokens_BL, positions_BL, segments_BL)


def as_batch(rows: Source, **more: Any) -> Batch:
    return Batch(rows.tokens, rows.tokens, np.float32(rows.segments), rows.positions, rows.segments, **more)


def output_of(config: ModelConfig, params: dict[str, Any], batch: Batch, head: Head | None = None) -> np.ndarray:
    return np.asarray(jax.jit(build_model(config, head).apply)({"params": params}, batch).logits)
