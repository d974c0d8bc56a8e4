"""Computes a loss over the vocabulary without ever holding the logits of all tokens in memory at once.

For a large vocabulary, the logits (B, L, V) and their gradient need more memory than the rest of the model: 3.3 GB in
float32 for 8 rows of 1,024 tokens and a vocabulary of 50,257. `loss_in_chunks` scans over chunks along the length L.
Each step computes the logits of a chunk, their losses and, in training, the gradients with respect to the features and
the output matrix. After that, the logits are no longer needed. In the backward pass, these gradients are multiplied by
the incoming gradient of the loss. Each matrix product is computed only once, as it would be without chunks. The idea
comes from the Liger kernels (Hsu 2024).

On a mesh, each shard of the rows accumulates its own gradient of the output matrix, so that the devices exchange this
gradient once per training step instead of once per chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lm.batch import Array, VocabularyLogits
from lm.parallel.mesh import current_platform, shards_of

CHUNK, CPU_CHUNK = 64 * 2**20, 16 * 2**20  # bytes per device; on a CPU, small chunks are faster if a cache holds them
FEWEST = 4  # logits that would fit in fewer chunks are computed at once
# On a GPU, the aim is a number of chunks, because each of them reads and writes the gradient of the output matrix.
GPU_CHUNKS, LARGEST_GPU_CHUNK = 8, 2**30

# Returns sums, a pytree with an attribute `loss`, for logits (B, L, V), targets (B, L) and weights (B, L).
TokenLoss = Callable[[Array, Array, Array], Any]


def num_chunks(wanted: int, logits: VocabularyLogits, targets_BL: Array) -> int:
    """Returns the number of chunks for a batch. See `chunks_for`."""
    tokens, entries = targets_BL.size // shards_of("batch"), logits.vocab_size // shards_of("vocab")
    matrix_size = entries * logits.x_BLE.shape[2]
    return chunks_for(wanted, tokens * entries, matrix_size, targets_BL.shape[1], current_platform())


def chunks_for(wanted: int, num_logits: int, matrix_size: int, length: int, platform: str) -> int:
    """Returns the number of chunks for rows of `length` tokens.

    Args:
        wanted: objective.logit_chunks. If 0, the number depends on the sizes.
        num_logits: the number of logits per device, which are float32.
        matrix_size: the number of elements of the output matrix per device. Every chunk adds to the gradient of the
            matrix. On a CPU, chunks are therefore at least as large as the matrix, up to CHUNK.
    """
    size, chunk = 4 * num_logits, CHUNK
    if platform == "cpu":
        chunk = min(CHUNK, max(CPU_CHUNK, 4 * matrix_size))
    elif platform == "gpu":
        chunk = min(LARGEST_GPU_CHUNK, max(CHUNK, math.ceil(size / GPU_CHUNKS)))
    count = min(length, wanted or (1 if size < FEWEST * chunk else math.ceil(size / chunk)))
    return math.ceil(length / math.ceil(length / count))  # fewer chunks may suffice once their size is rounded up


def loss_in_chunks(logits: VocabularyLogits, targets_BL: Array, weights_BL: Array, count: int, loss: TokenLoss) -> Any:
    """Returns the sums of `loss` over all tokens, computed in `count` chunks along the length.

    Only the attribute `loss` of the sums has a gradient.
    """
    static = logits.project, loss, count, shards_of("batch")
    return _sums(static, logits.weights, logits.x_BLE, targets_BL, weights_BL)


Static = tuple[Any, TokenLoss, int, int]  # projection, loss, number of chunks, number of shards of the rows
Weights = dict[str, Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static: Static, weights: Weights, x_BLE: Array, targets_BL: Array, weights_BL: Array) -> Any:
    return _scan(static, (), weights, x_BLE, targets_BL, weights_BL)[0]


def _forward(static: Static, *inputs: Any) -> tuple[Any, Any]:
    """Returns the sums and the gradients of the loss. Weights that are frozen get no gradient."""
    is_trained = any(each.perturbed for each in jax.tree.leaves(inputs[0]))
    values = jax.tree.map(lambda each: each.value, inputs)
    sums, gradients = _scan(static, (0, 1) if is_trained else (1,), *values)
    return sums, gradients if is_trained else (None, *gradients)


def _backward(static: Static, gradients: Any, cotangent: Any) -> tuple[Any, Any, None, None]:
    factor = cotangent.loss
    if isinstance(factor, SymbolicZero):
        return None, None, None, None
    return *jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients), None, None


_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _scan(
    static: Static, wrt: tuple[int, ...], weights: Weights, x_BLE: Array, targets_BL: Array, weights_BL: Array
) -> tuple[Any, tuple[Any, ...]]:
    """Returns the sums, and the gradients of their `loss` with respect to `wrt` (0: the weights, 1: the features)."""
    project, loss, count, shards = static
    (rows, length), size = targets_BL.shape, -(-targets_BL.shape[1] // count)

    def split(x: Array) -> Array:
        """Reshapes (B, L, ...) to (chunks, shards, rows per shard, tokens per chunk, ...). Padding has weight 0."""
        x = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0),) * (x.ndim - 2)))
        x = jnp.moveaxis(x.reshape(shards, rows // shards, count, size, *x.shape[2:]), 2, 0)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 2).reshape(rows, count * size, *x.shape[4:])[:, :length]

    def of_shard(*inputs: Any) -> tuple[Any, tuple[Any, ...]]:
        """Returns the sums and gradients for the tokens of one chunk in one shard."""

        def sums_of(weights: Weights, x: Array, targets: Array, token_weights: Array) -> tuple[Array, Any]:
            sums = loss(project(weights, x), targets, token_weights)
            return sums.loss, sums

        if not wrt:
            return sums_of(*inputs)[1], ()
        (_, sums), gradients = jax.value_and_grad(sums_of, wrt, has_aux=True)(*inputs)
        return sums, gradients

    def step(of_weights: Weights, chunk: tuple[Array, ...]) -> tuple[Weights, Any]:
        if shards > 1:
            sums, gradients = jax.vmap(of_shard, in_axes=(None, 0, 0, 0))(weights, *chunk)
        else:
            sums, gradients = jax.tree.map(lambda x: x[None], of_shard(weights, *(x[0] for x in chunk)))
        if 0 in wrt:
            of_weights = {name: of_weights[name] + gradients[0][name] for name in weights}
            of_weights = {name: nn.with_logical_constraint(x, ("batch", *axes[name])) for name, x in of_weights.items()}
        return of_weights, (sums, gradients[-1:])

    axes = project.axes
    weights = {name: nn.with_logical_constraint(x, axes[name]) for name, x in weights.items()}  # gathered once
    zeros = {name: jnp.zeros((shards, *x.shape), jnp.float32) for name, x in weights.items()} if 0 in wrt else {}
    of_weights, (sums, of_x) = jax.lax.scan(step, zeros, tuple(map(split, (x_BLE, targets_BL, weights_BL))))
    total = jax.tree.map(lambda x: jnp.sum(x, axis=(0, 1)), sums)
    gradients = tuple(map(join, of_x))
    if 0 in wrt:
        gradients = (
            {name: jnp.sum(x, axis=0).astype(weights[name].dtype) for name, x in of_weights.items()},
            *gradients,
        )
    return total, gradients
