"""Products, norms, embeddings and the MLP. Each parameter names its logical axes.

The mesh rules in `lm/parallel/mesh.py` decide where the logical axes go; here they are only names.
Parameters are float32; products run in the compute dtype, norms in float32.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    return jnp.dtype(config.dtype)


class Dense(nn.Module):
    """y = x W + b over the last dimensions, e.g. (D,) -> (H, K) or (H, K) -> (D,).

    Computed as one product of two matrices with all leading dimensions flattened: it is the fastest
    form on a CPU, and `nn.DenseGeneral` cannot carry logical axes on kernels of more than two dimensions.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]  # logical axes of the kernel: those of the inputs, then of the outputs
    use_bias: bool
    dtype: jnp.dtype
    init_std: float
    lora_rank: int = 0  # of an adapter (Hu 2021), see `adapter`: y += (x A) B lora_scale; 0 for none
    lora_scale: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel_init = nn.with_logical_partitioning(nn.initializers.normal(self.init_std), self.axes)
        kernel = self.param("kernel", kernel_init, self.inputs + self.outputs)
        leading = x.shape[: x.ndim - len(self.inputs)]
        x_TI = x.reshape(-1, math.prod(self.inputs)).astype(self.dtype)
        y_TO = x_TI @ kernel.reshape(math.prod(self.inputs), -1).astype(self.dtype)
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[len(self.inputs) :])
            bias = self.param("bias", bias_init, self.outputs)
            y_TO = y_TO + bias.reshape(1, -1).astype(self.dtype)
        if self.lora_rank:
            y_TO = y_TO + self._adapted(x_TI)
        return y_TO.reshape(*leading, *self.outputs)

    def _adapted(self, x_TI: Array) -> Array:
        """(x A) B lora_scale: 0 at first, since B begins with zeros. The rank, small, is whole on every device."""
        inputs, rank = math.prod(self.inputs), self.lora_rank
        axes_a, axes_b = (*self.axes[: len(self.inputs)], None), (None, *self.axes[len(self.inputs) :])
        init_a = nn.with_logical_partitioning(nn.initializers.normal(1 / math.sqrt(inputs)), axes_a)
        init_b = nn.with_logical_partitioning(nn.initializers.zeros, axes_b)
        a_IR = self.param("lora_a", init_a, (*self.inputs, rank)).reshape(inputs, rank).astype(self.dtype)
        b_RO = self.param("lora_b", init_b, (rank, *self.outputs)).reshape(rank, -1).astype(self.dtype)
        return (x_TI @ a_IR) @ b_RO * jnp.asarray(self.lora_scale, self.dtype)


class Norm(nn.Module):
    """LayerNorm (Ba 2016) or RMSNorm (Zhang 2019), computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config, width = self.config, x_BLD.shape[-1:]
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale_D = self.param("scale", scale_init, width)
        y_BLD = x_BLD.astype(jnp.float32)
        if config.norm == "layernorm":
            y_BLD = y_BLD - jnp.mean(y_BLD, axis=-1, keepdims=True)
        variance_BL1 = jnp.mean(jnp.square(y_BLD), axis=-1, keepdims=True)
        y_BLD = y_BLD * jax.lax.rsqrt(variance_BL1 + config.norm_epsilon) * scale_D.reshape(1, 1, -1)
        if config.norm == "layernorm" and config.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
            y_BLD = y_BLD + self.param("bias", bias_init, width).reshape(1, 1, -1)
        return y_BLD.astype(compute_dtype(config))


class Embedding(nn.Module):
    """A table of vectors; tied to the output when `attend` is used too."""

    size: int
    config: ModelConfig
    axes: tuple[str, str]

    def setup(self) -> None:
        std = self.config.embedding_std or self.config.init_std or self.config.d_model**-0.5
        init = nn.with_logical_partitioning(nn.initializers.normal(std), self.axes)
        self.embedding = self.param("embedding", init, (self.size, self.config.d_model))

    def __call__(self, ids_BL: Array) -> Array:
        return jnp.take(self.embedding, ids_BL, axis=0).astype(compute_dtype(self.config))

    def attend(self, x_BLD: Array) -> Array:
        """Logits (B, L, V), float32."""
        dtype = compute_dtype(self.config)
        if self.config.scale_logits:
            x_BLD = x_BLD * jnp.asarray(self.config.d_model**-0.5, x_BLD.dtype)
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1]).astype(dtype)
        logits_TV = jnp.einsum("TD,VD->TV", x_TD, self.embedding.astype(dtype), preferred_element_type=jnp.float32)
        return logits_TV.reshape(*x_BLD.shape[:-1], -1)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=False),
    "geglu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Mlp(nn.Module):
    """down(activation(up(x))), or, gated (Shazeer 2020), down(activation(gate(x)) * up(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config = self.config
        activation = ACTIVATIONS[config.activation]
        width, hidden = (config.d_model,), (config.d_ff,)

        def dense(name: str, inputs: tuple, outputs: tuple, axes: tuple, scale: float = 1.0) -> Dense:
            std = initial_std(config, inputs, scale)
            common = config.use_bias, compute_dtype(config), std, *adapter(config, name)
            return Dense(inputs, outputs, axes, *common, name=name)

        up_BLF = dense("up", width, hidden, ("embed", "mlp"))(x_BLD)
        if config.gated:
            gate_BLF = dense("gate", width, hidden, ("embed", "mlp"))(x_BLD)
            hidden_BLF = activation(gate_BLF) * up_BLF
        else:
            hidden_BLF = activation(up_BLF)
        hidden_BLF = nn.with_logical_constraint(hidden_BLF, ("batch", "length", "mlp"))
        return dense("down", hidden, width, ("mlp", "embed"), residual_scale(config))(hidden_BLF)


def adapter(config: ModelConfig, name: str) -> tuple[int, float]:
    """Rank and scale of the adapter of a block's product `name`; (0, 0.0) for none."""
    if config.lora_rank == 0 or name not in config.lora_targets:
        return 0, 0.0
    return config.lora_rank, config.lora_alpha / config.lora_rank


def initial_std(config: ModelConfig, inputs: tuple[int, ...], scale: float = 1.0) -> float:
    """Initial deviation of a product of so many inputs."""
    return scale * (config.init_std or 1 / math.sqrt(math.prod(inputs)))


def residual_scale(config: ModelConfig) -> float:
    """Products that write to the residual stream begin smaller than the others (GPT-2: by 1/sqrt(2 N))."""
    return 1 / math.sqrt(2 * config.num_layers) if config.init_residual_scaling else 1.0
