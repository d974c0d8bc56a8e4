"""The MLP of a block, plain or gated."""

from __future__ import annotations

import flax.linen as nn

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.layers import ACTIVATIONS
from lm.models.transformer.projection import projection, residual_scale


class Mlp(nn.Module):
    """down(activation(up(x))), or, gated (Shazeer 2020), down(activation(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        width, mlp_width = (config.d_model,), (config.d_ff,)
        up_BLF = projection(config, "up", width, mlp_width, ("embed", "mlp"))(x_BLD)
        if activation.gated:
            gate_BLF = projection(config, "gate", width, mlp_width, ("embed", "mlp"))(x_BLD)
            h_BLF = activation.function(gate_BLF) * up_BLF
        else:
            h_BLF = activation.function(up_BLF)
        h_BLF = nn.with_logical_constraint(h_BLF, ("batch", "length", "mlp"))
        return projection(config, "down", mlp_width, width, ("mlp", "embed"), residual_scale(config))(h_BLF)
