"""A mixture of two language models, whose probabilities are interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.models.protocol import Model


@dataclass(frozen=True)
class Mixture:
    """Predicts each token with probability (1 - w) p(token) + w q(token), where p and q come from two models.

    The models must share a tokenizer. If one of them has more logits, the other assigns probability 0 to the
    additional tokens. Evaluation needs only the method `apply` of the model protocol. The parameters are
    {"own": parameters of p, "other": parameters of q, "weight": w}.
    """

    own: Model
    other: Model

    def apply(self, variables: Any, batch: Batch, *, train: bool = False) -> Output:
        params = variables["params"]
        own_BLV, other_BLV = (
            log_probs(model, params[name], batch) for name, model in (("own", self.own), ("other", self.other))
        )
        size = max(own_BLV.shape[-1], other_BLV.shape[-1])
        weight = params["weight"]
        return Output(
            jnp.logaddexp(_padded(own_BLV, size) + jnp.log1p(-weight), _padded(other_BLV, size) + jnp.log(weight))
        )


def log_probs(model: Model, params: Any, batch: Batch) -> Array:
    """Returns the log-probabilities of all tokens, float32 (B, L, V)."""
    return jax.nn.log_softmax(model.apply({"params": params}, batch, train=False).logits, axis=-1)


def _padded(x_BLV: Array, size: int) -> Array:
    return jnp.pad(x_BLV, ((0, 0), (0, 0), (0, size - x_BLV.shape[-1])), constant_values=-jnp.inf)
