"""Layers shared by all models: projections, norms and embeddings, with registries of norms and activations.

Every parameter is declared with logical axes, which `lm/parallel/mesh.py` maps to mesh axes.
Parameters are float32; for decoding, matrices may be 8-bit (`lm.models.int8`). Matrices are multiplied in the
compute dtype, and norms are computed in float32. The outputs of all layers have the activation dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, ones, zeros

from lm.batch import Array
from lm.config import ModelConfig
from lm.models.int8 import Int8Matrix
from lm.models.products import product
from lm.parallel.mesh import current_platform


def activation_dtype(config: ModelConfig) -> str:
    """Returns the activation dtype of a model with this config.

    `Transformer.build` replaces 'auto', which a run's config may contain, with the value for the platform.
    """
    return "float32" if config.activation_dtype == "float32" else config.dtype


def parameter(
    module: nn.Module, name: str, init: Callable[..., Array], axes: tuple[str | None, ...], shape: tuple[int, ...]
) -> Array:
    """Declares a float32 parameter of `module` with one logical axis per dimension."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


class Dense(nn.Module):
    """A projection y = x W + b over the last dimensions, for example (D,) -> (H, K) or (H, K) -> (D,).

    All leading dimensions are flattened, because a single matrix multiplication is fastest on a CPU.
    (`nn.DenseGeneral` does not support logical axes on kernels with more than two dimensions.)
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]  # logical axes of the kernel: the axes of the inputs, then the axes of the outputs
    use_bias: bool
    dtype: str  # the compute dtype
    activation_dtype: str
    init_std: float
    lora_rank: int = 0  # rank of an adapter that adds (x A) B lora_scale to y (Hu 2021); 0 means no adapter
    lora_scale: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        split = len(self.inputs)
        kernel = parameter(self, "kernel", normal(self.init_std), self.axes, self.inputs + self.outputs)
        x_TI = x.reshape(-1, math.prod(self.inputs)).astype(self.activation_dtype)
        y_TO = product(x_TI, kernel, self.dtype)
        if self.use_bias:
            bias = parameter(self, "bias", zeros, self.axes[split:], self.outputs)
            y_TO = y_TO + bias.reshape(1, -1).astype(y_TO.dtype)
        if self.lora_rank:
            y_TO = y_TO + self._adapter(x_TI)
        return y_TO.reshape(*x.shape[: x.ndim - split], *self.outputs)

    def _adapter(self, x_TI: Array) -> Array:
        """Returns (x A) B lora_scale, where B is initially 0. The rank axis is too small to be worth sharding."""
        width, rank, split = x_TI.shape[1], self.lora_rank, len(self.inputs)
        axes_a, axes_b = (*self.axes[:split], None), (None, *self.axes[split:])
        a_IR = parameter(self, "lora_a", normal(1 / math.sqrt(width)), axes_a, (*self.inputs, rank))
        b_RO = parameter(self, "lora_b", zeros, axes_b, (rank, *self.outputs))
        xa_TR = x_TI @ a_IR.reshape(width, rank).astype(x_TI.dtype)
        return xa_TR @ b_RO.reshape(rank, -1).astype(x_TI.dtype) * jnp.asarray(self.lora_scale, x_TI.dtype)


@dataclass(frozen=True)
class NormKind:
    """A norm that can be selected with model.norm. All norms have a learned scale."""

    normalize: Callable[[Array, float], Array]  # (float32 values, epsilon) -> values normalised over the last axis
    has_bias: bool  # whether the norm has a bias if model.use_bias is true

    def num_parameters(self, config: ModelConfig, width: int = 0) -> int:
        """Returns the number of parameters of a norm over `width` features (0 means d_model features)."""
        return (width or config.d_model) * (1 + int(self.has_bias and config.use_bias))


def _root_mean_square(x: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardize(x: Array, epsilon: float) -> Array:
    mean, inverse = _moments(x, epsilon)
    return (x - mean) * inverse


def _moments(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Returns the mean of each row and 1 / standard deviation."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + epsilon)


def _standardize_forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    mean, inverse = _moments(x, epsilon)
    if current_platform() == "gpu":
        # Otherwise, XLA would compute the mean again for the gradient of the scale, in a pass of its own.
        mean, inverse = jax.lax.optimization_barrier((mean, inverse))
    return (x - mean) * inverse, (x, mean, inverse)


def _standardize_backward(epsilon: float, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array]:
    """Uses x, its mean and 1 / standard deviation; y is computed again, which is cheaper than saving it."""
    x, mean, inverse = saved
    y = (x - mean) * inverse
    means = jnp.mean(dy, axis=-1, keepdims=True) + y * jnp.mean(dy * y, axis=-1, keepdims=True)
    return ((dy - means) * inverse,)


_standardize.defvjp(_standardize_forward, _standardize_backward)


NORMS: dict[str, NormKind] = {
    "layernorm": NormKind(_standardize, has_bias=True),  # Ba 2016
    "rmsnorm": NormKind(_root_mean_square, has_bias=False),  # Zhang 2019
    # Hoffer 2018. The standard deviation of a normal distribution is sqrt(pi / 2) times its mean absolute deviation.
    "l1norm": NormKind(
        lambda x, epsilon: (
            (centred := x - jnp.mean(x, axis=-1, keepdims=True))
            / (jnp.mean(jnp.abs(centred), axis=-1, keepdims=True) * math.sqrt(math.pi / 2) + epsilon)
        ),
        has_bias=True,
    ),
}


class Norm(nn.Module):
    """The norm selected by model.norm, computed over the last axis in float32.

    The normalised values are multiplied by the learned scale or, with model.norm_unit_offset, by 1 + scale.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, width, kind = self.config, x.shape[-1:], NORMS[self.config.norm]
        row = (1,) * (x.ndim - 1) + width
        scale = parameter(self, "scale", zeros if config.norm_unit_offset else ones, ("norm",), width)
        factor = 1.0 + scale if config.norm_unit_offset else scale
        y = kind.normalize(x.astype(jnp.float32), config.norm_epsilon) * factor.reshape(row)
        if kind.has_bias and config.use_bias:
            y = y + parameter(self, "bias", zeros, ("norm",), width).reshape(row)
        return y.astype(activation_dtype(config))


@dataclass(frozen=True)
class NormPosition:
    """A value of model.norm_position: where norms are applied. Without norms, a sub-layer f computes x + f(x)."""

    doc: str
    inputs: bool = False  # x + f(norm(x))
    outputs: bool = False  # x + norm(f(x))
    sums: bool = False  # norm(x + f(x)); the other positions need a norm after the last block

    @property
    def reads(self) -> frozenset[str]:
        """The settings that have an effect only with certain norm positions, including this one."""
        return frozenset({"first_norm"} if self.inputs else ())

    @property
    def per_sublayer(self) -> int:
        return self.inputs + self.outputs + self.sums


NORM_POSITIONS: dict[str, NormPosition] = {
    "pre": NormPosition("the input of each sub-layer", inputs=True),
    "post": NormPosition("the residual sum after each sub-layer", sums=True),
    "sandwich": NormPosition("the input and the output of each sub-layer (Gemma 2)", inputs=True, outputs=True),
    "branch": NormPosition("the output of each sub-layer, before it is added (OLMo 2)", outputs=True),
}


@dataclass(frozen=True)
class Activation:
    """An activation that can be selected with model.activation."""

    function: Callable[[Array], Array]
    tensors_kept: int  # number of tensors of width d_ff saved for the backward pass, including the input of `down`
    gated: bool = False  # if True, down(function(gate(x)) * up(x)) (Shazeer 2020); if False, down(function(up(x)))


def _with_derivative(function: Callable[[Array], Array], derivative: Callable[[Array], Array]) -> Callable[..., Array]:
    """Returns a function that is computed in float32 and saves only its input for the backward pass.

    If `function` and `derivative` need the same costly value, `derivative` must compute it from a different expression.
    Otherwise, XLA would compute the value once and save it.
    """

    @jax.custom_vjp
    def call(x: Array) -> Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    def backward(x: Array, dy: Array) -> tuple[Array]:
        return ((dy.astype(jnp.float32) * derivative(x.astype(jnp.float32))).astype(x.dtype),)

    call.defvjp(lambda x: (call(x), x), backward)
    return call


_ROOT, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh_derivative(x: Array) -> Array:
    tanh = -jnp.tanh(-_ROOT * (x + _CUBIC * x**3))
    return 0.5 * (1 + tanh + x * (1 - jnp.square(tanh)) * _ROOT * (1 + 3 * _CUBIC * jnp.square(x)))


_gelu = _with_derivative(  # x Phi(x), where Phi is the standard normal distribution function (Hendrycks 2016)
    lambda x: 0.5 * x * (1 + jax.lax.erf(math.sqrt(0.5) * x)),
    lambda x: 0.5 * (1 - jax.lax.erf(-math.sqrt(0.5) * x)) + x * jnp.exp(-0.5 * jnp.square(x)) * (0.5 * _ROOT),
)
_gelu_tanh = _with_derivative(lambda x: 0.5 * x * (1 + jnp.tanh(_ROOT * (x + _CUBIC * x**3))), _gelu_tanh_derivative)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, tensors_kept=2),
    "gelu_tanh": Activation(_gelu_tanh, tensors_kept=2),
    "quick_gelu": Activation(lambda x: x * jax.nn.sigmoid(1.702 * x), tensors_kept=4),
    "relu": Activation(jax.nn.relu, tensors_kept=2),
    "silu": Activation(jax.nn.silu, tensors_kept=4),
    "swiglu": Activation(jax.nn.silu, tensors_kept=6, gated=True),
    "geglu": Activation(_gelu, tensors_kept=4, gated=True),
    "geglu_tanh": Activation(_gelu_tanh, tensors_kept=4, gated=True),
    "reglu": Activation(jax.nn.relu, tensors_kept=4, gated=True),
}


def embedding_width(config: ModelConfig) -> int:
    """Returns the width E of all embedding tables, which is d_model unless model.embedding_width is set."""
    return config.embedding_width or config.d_model


class Embedding(nn.Module):
    """An embedding table. `lm.models.vocabulary` may reuse it as the output matrix."""

    size: int
    config: ModelConfig
    axes: tuple[str, str]

    def setup(self) -> None:
        width = embedding_width(self.config)
        std = self.config.embedding_std or self.config.init_std or width**-0.5
        self.embedding = parameter(self, "embedding", normal(std), self.axes, (self.size, width))

    def __call__(self, ids_BL: Array) -> Array:
        """Returns the embeddings of the ids, (B, L, E)."""
        dtype = activation_dtype(self.config)
        if isinstance(self.embedding, Int8Matrix):
            return self.embedding.rows(ids_BL).astype(dtype)
        return jnp.take(self.embedding, ids_BL, axis=0).astype(dtype)


# The attention projections that have a bias, for each value of model.attention_bias except "default".
ATTENTION_BIASES: dict[str, tuple[str, ...]] = {
    "none": (),
    "qkv": ("query", "key", "value"),
    "all": ("query", "key", "value", "out"),
}


def has_bias(config: ModelConfig, name: str) -> bool:
    """Returns whether the projection `name` of a block has a bias."""
    if config.attention_bias == "default" or name not in ATTENTION_BIASES["all"]:
        return config.use_bias
    return name in ATTENTION_BIASES[config.attention_bias]


def projection(
    config: ModelConfig,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    axes: tuple[str, ...],
    scale: float = 1.0,
    use_bias: bool | None = None,
) -> Dense:
    """Builds a projection from a config, with an adapter if model.lora_targets contains the projection's name.

    Args:
        axes: the logical axes of the inputs, followed by the logical axes of the outputs.
        scale: a factor by which the standard deviation of the initial weights is multiplied.
        use_bias: whether the projection has a bias; if None, `has_bias` decides.
    """
    rank = config.lora_rank if name in config.lora_targets else 0
    adapter = (rank, config.lora_alpha / rank) if rank else (0, 0.0)
    std = scale * (config.init_std or 1 / math.sqrt(math.prod(inputs)))
    biased = has_bias(config, name) if use_bias is None else use_bias
    dtypes = config.dtype, activation_dtype(config)
    return Dense(inputs, outputs, axes, biased, *dtypes, std, *adapter, name=name)


def residual_scale(config: ModelConfig) -> float:
    """Returns the initial weight scale of projections into the residual stream: 1/sqrt(2 N), as in GPT-2, or 1."""
    return 1 / math.sqrt(2 * config.num_layers) if config.init_residual_scaling else 1.0
