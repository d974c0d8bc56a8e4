"""The product of activations and a weight matrix, with factors in the compute dtype.

On a CPU, XLA's library of kernels multiplies bfloat16 matrices about twice as fast as float32 ones, but only if the
result is float32 and the sum runs over the last axis of the first matrix. XLA computes all other bfloat16 products in
float32, with conversions before and after them (jaxlib 0.10). On a CPU, this module therefore computes large products
in the fast form.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.batch import Array
from lm.models.int8 import Int8Matrix
from lm.parallel.mesh import current_mesh

PRODUCT = "product"  # names the results for remat policies, which cannot see inside `platform_dependent`
SMALL = 1 << 24  # with fewer multiplications than this, the form of a product hardly matters


def product(x_TI: Array, matrix: Array | Int8Matrix, dtype: str) -> Array:
    """Returns x W, (T, O), in the dtype of x. The factors are multiplied in the compute dtype.

    The matrix has the shape (*inputs, *outputs); I is the product of the input sizes, and O is the product of the
    output sizes. The matrix is a float32 parameter, and its gradient is float32 as well. An 8-bit matrix has no
    gradient.
    """
    if isinstance(matrix, Int8Matrix):
        y_TO = product(x_TI, matrix.values, dtype).astype(jnp.float32)  # the scales are not rounded
        return (y_TO * matrix.scales.reshape(1, -1)).astype(x_TI.dtype)
    w_IO = matrix.reshape(x_TI.shape[1], -1)
    if dtype == "float32":
        assert x_TI.dtype == jnp.float32, x_TI.dtype
        return checkpoint_name(x_TI @ w_IO.astype(jnp.float32), PRODUCT)
    if x_TI.dtype == jnp.float32:
        return checkpoint_name(_rounded_product(x_TI, w_IO, False, "float32"), PRODUCT)
    y_TO = jax.lax.platform_dependent(x_TI, w_IO, cpu=_on_cpu, default=lambda x, w: x @ w.astype(x.dtype))
    return checkpoint_name(y_TO, PRODUCT)


def _on_cpu(x_TI: Array, w_IO: Array) -> Array:
    return _rounded_product(x_TI, w_IO, False, "bfloat16").astype(x_TI.dtype)


def float32_product(x_TI: Array, matrix: Array, transposed: bool, dtype: str) -> Array:
    """Returns x W, float32 (T, O). The factors are multiplied in the compute dtype.

    The matrix is W (I, O), or W^T (O, I) if `transposed` is true. The backward pass rounds the gradient of the result
    to the compute dtype before multiplying it. Otherwise, JAX would compute the products of the backward pass in
    float32, which takes at least twice as long on an accelerator.
    """
    if dtype == "float32":
        return (_rows_by_rows if transposed else _rows_by_columns)(x_TI.astype(dtype), matrix)
    return _rounded_product(x_TI, matrix, transposed, x_TI.dtype.name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rounded_product(x_TI: Array, matrix: Array, transposed: bool, x_dtype: str) -> Array:
    """Returns x W, float32 (T, O), from factors rounded to bfloat16. The gradient of the result is rounded as well.

    Args:
        transposed: whether the matrix is W^T (O, I).
        x_dtype: the dtype of x and of the gradient of x.
    """
    return _forward(x_TI, matrix, transposed, x_dtype)[0]


def _forward(x_TI: Array, matrix: Array, transposed: bool, x_dtype: str) -> tuple[Array, tuple[Array, Array]]:
    x_TI = x_TI.astype(jnp.bfloat16)  # saved in bfloat16, which takes half the memory
    multiply = _rows_by_rows if transposed else _rows_by_columns
    return multiply(x_TI, matrix.astype(jnp.bfloat16)), (x_TI, matrix)


def _backward(transposed: bool, x_dtype: str, saved: tuple[Array, Array], dy_TO: Array) -> tuple[Array, Array]:
    x_TI, matrix = saved
    dy_TO = dy_TO.astype(jnp.bfloat16)
    multiply = _rows_by_columns if transposed else _rows_by_rows
    dx_TI = multiply(dy_TO, matrix.astype(jnp.bfloat16))
    factors = (dy_TO, x_TI) if transposed else (x_TI, dy_TO)
    dw = jax.lax.platform_dependent(*factors, cpu=_transposed_product, default=_plain_transposed_product)
    return dx_TI.astype(x_dtype), dw.astype(matrix.dtype)


_rounded_product.defvjp(_forward, _backward)

_rows_by_columns = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _rows_by_rows(a_TI: Array, b_OI: Array) -> Array:
    """Returns a b^T, float32 (T, O). The product includes the transposition, because a separate one would be slow."""
    return jax.lax.dot_general(a_TI, b_OI, (((1,), (1,)), ((), ())), None, jnp.float32)


def _plain_transposed_product(a_TI: Array, b_TO: Array) -> Array:
    return jax.lax.dot_general(a_TI, b_TO, (((0,), (0,)), ((), ())), None, jnp.float32)


def _transposed_product(a_TI: Array, b_TO: Array) -> Array:
    """Returns a^T b, float32 (I, O).

    XLA would merge the transposition into the product, which would then no longer have the fast form. The product is
    therefore computed in a loop, because XLA does not merge it with a transposition outside the loop.
    """
    if a_TI.shape[1] > b_TO.shape[1]:  # transposes the smaller matrix
        return _transposed_product(b_TO, a_TI).T
    tokens, inputs = a_TI.shape
    pieces = next((count for count in (3, 2, 5, 7) if inputs % count == 0), 1)
    if a_TI.size * b_TO.shape[1] < SMALL or pieces == 1 or current_mesh() is not None:
        return _plain_transposed_product(a_TI, b_TO)
    a_PRT = a_TI.T.reshape(pieces, inputs // pieces, tokens)
    return jax.lax.map(lambda a_RT: _rows_by_columns(a_RT, b_TO), a_PRT).reshape(inputs, -1)
