"""Layers that every kind of model can use: projections, norms, embeddings, and the registries of norms and activations.

Each parameter names its logical axes; `lm/parallel/mesh.py` decides which axes of the mesh they are split over.
Parameters are float32. Projections run in the compute dtype, norms in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.config import ModelConfig


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    return jnp.dtype(config.dtype)


def initial_std(config: ModelConfig, inputs: tuple[int, ...], scale: float = 1.0) -> float:
    """Returns the standard deviation of the initial weights of a projection from `inputs` dimensions."""
    return scale * (config.init_std or 1 / math.sqrt(math.prod(inputs)))


class Dense(nn.Module):
    """A projection y = x W + b over the last dimensions, for example (D,) -> (H, K) or (H, K) -> (D,).

    It is computed as one product of two matrices, with all leading dimensions flattened. That is the fastest form on
    a CPU, and `nn.DenseGeneral` cannot carry logical axes on kernels of more than two dimensions.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]  # logical axes of the kernel: those of the inputs, then those of the outputs
    use_bias: bool
    dtype: jnp.dtype
    init_std: float
    lora_rank: int = 0  # with an adapter (Hu 2021): y += (x A) B lora_scale; 0 for none
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
            y_TO = y_TO + self._adapter(x_TI)
        return y_TO.reshape(*leading, *self.outputs)

    def _adapter(self, x_TI: Array) -> Array:
        """Returns (x A) B lora_scale, which is 0 at first because B starts at 0.

        The rank is small, so no device splits it.
        """
        inputs, rank = math.prod(self.inputs), self.lora_rank
        axes_a, axes_b = (*self.axes[: len(self.inputs)], None), (None, *self.axes[len(self.inputs) :])
        init_a = nn.with_logical_partitioning(nn.initializers.normal(1 / math.sqrt(inputs)), axes_a)
        init_b = nn.with_logical_partitioning(nn.initializers.zeros, axes_b)
        a_IR = self.param("lora_a", init_a, (*self.inputs, rank)).reshape(inputs, rank).astype(self.dtype)
        b_RO = self.param("lora_b", init_b, (rank, *self.outputs)).reshape(rank, -1).astype(self.dtype)
        return (x_TI @ a_IR) @ b_RO * jnp.asarray(self.lora_scale, self.dtype)


@dataclass(frozen=True)
class NormKind:
    """One value of model.norm. Every norm has a learned scale."""

    normalize: Callable[[Array, float], Array]  # (float32 values, epsilon) -> values normalized over the last axis
    has_bias: bool  # whether model.use_bias adds one

    def num_parameters(self, config: ModelConfig) -> int:
        return config.d_model * (1 + int(self.has_bias and config.use_bias))


def _root_mean_square(x: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def _standardize(x: Array, epsilon: float) -> Array:
    return _root_mean_square(x - jnp.mean(x, axis=-1, keepdims=True), epsilon)


NORMS: dict[str, NormKind] = {
    "layernorm": NormKind(_standardize, has_bias=True),  # Ba 2016
    "rmsnorm": NormKind(_root_mean_square, has_bias=False),  # Zhang 2019
}


class Norm(nn.Module):
    """The norm that model.norm names, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        config, width, kind = self.config, x_BLD.shape[-1:], NORMS[self.config.norm]
        scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale_D = self.param("scale", scale_init, width)
        y_BLD = kind.normalize(x_BLD.astype(jnp.float32), config.norm_epsilon) * scale_D.reshape(1, 1, -1)
        if kind.has_bias and config.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
            y_BLD = y_BLD + self.param("bias", bias_init, width).reshape(1, 1, -1)
        return y_BLD.astype(compute_dtype(config))


@dataclass(frozen=True)
class Activation:
    """One value of model.activation."""

    function: Callable[[Array], Array]
    # How many tensors of the MLP's width stay in memory for the backward pass, the input of `down` included.
    tensors_kept: int
    gated: bool = False  # the MLP is down(function(gate(x)) * up(x)) (Shazeer 2020), not down(function(up(x)))

    @property
    def num_input_projections(self) -> int:
        """Projections from the width of the model to that of the MLP."""
        return 2 if self.gated else 1


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, tensors_kept=4),
    "gelu_tanh": Activation(_gelu_tanh, tensors_kept=6),
    "relu": Activation(jax.nn.relu, tensors_kept=2),
    "swiglu": Activation(jax.nn.silu, tensors_kept=6, gated=True),
    "geglu": Activation(_gelu, tensors_kept=6, gated=True),
    "geglu_tanh": Activation(_gelu_tanh, tensors_kept=6, gated=True),
}


class Embedding(nn.Module):
    """A table of vectors. With `attend` it is the output matrix too."""

    size: int
    config: ModelConfig
    axes: tuple[str, str]

    def setup(self) -> None:
        std = self.config.embedding_std or self.config.init_std or self.config.d_model**-0.5
        init = nn.with_logical_partitioning(nn.initializers.normal(std), self.axes)
        self.embedding = self.param("embedding", init, (self.size, self.config.d_model))

    def __call__(self, ids_BL: Array) -> Array:
        """Returns the vectors (B, L, D) of the ids."""
        return jnp.take(self.embedding, ids_BL, axis=0).astype(compute_dtype(self.config))

    def attend(self, x_BLD: Array) -> Array:
        """Returns logits (B, L, V), float32."""
        dtype = compute_dtype(self.config)
        if self.config.scale_logits:
            x_BLD = x_BLD * jnp.asarray(self.config.d_model**-0.5, x_BLD.dtype)
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1]).astype(dtype)
        logits_TV = jnp.einsum("TD,VD->TV", x_TD, self.embedding.astype(dtype), preferred_element_type=jnp.float32)
        return logits_TV.reshape(*x_BLD.shape[:-1], -1)


def projection(
    config: ModelConfig,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    axes: tuple[str, ...],
    scale: float = 1.0,
) -> Dense:
    """Returns a projection of a block.

    Args:
        name: query, key, value, out, up, gate or down. model.lora_targets chooses adapters by it.
        axes: logical axes of the inputs, then of the outputs.
        scale: factor of the initial standard deviation.
    """
    rank = config.lora_rank if name in config.lora_targets else 0
    adapter = (rank, config.lora_alpha / rank) if rank else (0, 0.0)
    std = initial_std(config, inputs, scale)
    return Dense(inputs, outputs, axes, config.use_bias, compute_dtype(config), std, *adapter, name=name)


def residual_scale(config: ModelConfig) -> float:
    """Returns how much smaller the initial weights are that write to the residual stream (GPT-2: by 1/sqrt(2 N))."""
    return 1 / math.sqrt(2 * config.num_layers) if config.init_residual_scaling else 1.0
