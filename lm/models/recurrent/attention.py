"""Attention of a recurrent decoder to the outputs of the encoder (Bahdanau 2015, Luong 2015).

The context of a token is computed from the output of the decoder's last layer and is not fed back into the next step
(Luong 2015, section 3, without input feeding), so all tokens are processed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import projection
from lm.models.network import RECORD, SOURCE_WEIGHTS


def _linear(config: ModelConfig, name: str, x: Array, size: int) -> Array:
    return projection(config, name, x.shape[-1:], (size,), ("embed", "activation"), use_bias=False)(x)


def _dot(config: ModelConfig, x_BLD: Array, memory_BSD: Array) -> Array:
    return jnp.einsum("BLD,BSD->BLS", x_BLD, memory_BSD)


def _general(config: ModelConfig, x_BLD: Array, memory_BSD: Array) -> Array:
    return _dot(config, _linear(config, "state", x_BLD, memory_BSD.shape[-1]), memory_BSD)


def _additive(config: ModelConfig, x_BLD: Array, memory_BSD: Array) -> Array:
    x_BLD, memory_BSD = (
        _linear(config, name, x, config.d_model) for name, x in (("state", x_BLD), ("memory", memory_BSD))
    )
    return _linear(config, "score", jnp.tanh(x_BLD[:, :, None] + memory_BSD[:, None]), 1)[..., 0]


@dataclass(frozen=True)
class Score:
    """An attention score that can be selected with model.source_attention."""

    doc: str
    function: Callable[[ModelConfig, Array, Array], Array] | None  # (config, x_BLD, memory_BSD) -> scores_BLS
    matrices: int = 0  # the number of D x D matrices
    vectors: int = 0  # the number of vectors of size D


SCORES: dict[str, Score] = {
    "none": Score("no attention: the decoder reads only the encoder's last states (Sutskever 2014)", None),
    "dot": Score("h . m (Luong 2015)", _dot),
    "general": Score("h W . m (Luong 2015)", _general, matrices=1),
    "additive": Score("v . tanh(h W + m U) (Bahdanau 2015)", _additive, matrices=2, vectors=1),
}


class SourceAttention(nn.Module):
    """tanh([c; h] W), where c is the mean of the encoder's outputs, weighted by a softmax of the scores."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array, memory_BSD: Array, mask_BLS: Array) -> Array:
        """Returns the output, (B, L, D). If there are fewer sources than rows, consecutive rows share a source."""
        config, score = self.config, SCORES[self.config.source_attention].function
        assert score is not None, "this model has no attention"
        B, L, D = x_BLD.shape
        per_source = B // memory_BSD.shape[0]
        # Rows that share a source are concatenated, so that all their tokens attend to that source.
        x_BLD, mask_BLS = (x.reshape(-1, per_source * L, x.shape[-1]) for x in (x_BLD, mask_BLS))
        scores_BLS = score(config, x_BLD, memory_BSD).astype(jnp.float32)
        weights_BLS = jax.nn.softmax(jnp.where(mask_BLS, scores_BLS, -1e9), axis=-1)
        self.sow(RECORD, SOURCE_WEIGHTS, weights_BLS)
        context_BLD = jnp.einsum("BLS,BSD->BLD", weights_BLS.astype(memory_BSD.dtype), memory_BSD)
        both = jnp.concatenate([context_BLD, x_BLD], axis=-1)
        return jnp.tanh(_linear(config, "combine", both, D)).reshape(B, L, D)
