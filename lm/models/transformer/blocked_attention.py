"""Attention in blocks of queries that fit into the cache of a CPU core.

The scores of all rows and heads together are larger than any cache, so plain attention reads and writes main memory for
each of its operations. Here, a loop handles a few rows at a time, and each block of queries in turn. In causal
attention, a block omits the keys that come after it. The backward pass computes the scores of each block again, so they
are never stored (Rabe and Staats 2021; Dao 2022).

On a CPU, XLA multiplies matrices fast only if it need not transpose a large one. Scores are therefore held with the
keys before the queries, as (S, M): then the products with scores transpose only the narrow tensors of queries, keys and
values, and the barriers keep XLA from merging these transpositions into the products.

Shape letters: M is the number of queries of a block in all R = H / G heads that share keys and values; P is the number
of pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import optimization_barrier

from lm.batch import Array
from lm.models.transformer.remat import ATTENTION_OUTPUT
from lm.parallel.mesh import current_mesh

BLOCK = 128  # queries per block
PIECE = 3 << 19  # the scores that are computed together should not take more bytes than this
MASKED = float(jnp.finfo(jnp.float32).min)  # the score of a masked key
SMALL = 16 << 20  # scores of fewer bytes altogether stay in the shared cache of the cores, and are not worth a loop


def is_worth_blocks(q_BLHK: Array, k_BGSK: Array) -> bool:
    """Returns whether `blocked` is faster than attention as a whole.

    On several devices it never is, since a loop over rows that are split over devices would gather them.
    """
    B, L, H, _ = q_BLHK.shape
    return 4 * B * H * L * k_BGSK.shape[2] > SMALL and current_mesh() is None


class Inputs(NamedTuple):
    """The tensors of attention, for all rows or for a piece."""

    q: Array  # (B, L, H, K), scaled
    k: Array  # (B, G, S, K)
    v: Array  # (B, G, S, K)
    mask: Array  # bool (B, 1, 1, L, S)
    bias: Array | None  # (B or 1, G, R, L, S)


class Block(NamedTuple):
    """The part of a piece that belongs to the queries of the slice `span`."""

    span: slice
    q: Array  # (B, G, M, K)
    k: Array  # (B, G, S, K): the keys that these queries may attend to, as are the values
    v: Array  # (B, G, S, K)
    mask: Array  # bool (B, 1, 1, L, S)
    bias: Array | None  # (B or 1, G, R, L, S)
    shape: tuple[int, int, int, int, int]  # B, G, R, L, S


def blocked(
    q_BLHK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask_BLS: Array,
    bias_BHLS: Array | None = None,
    causal: bool = False,
    softcap: float = 0.0,
) -> Array:
    """Returns softmax(q k^T) v, (B, L, H, K), as `dot_product_attention` does with scale=1.

    A query whose keys are all masked contributes nothing to the gradients.

    Args:
        bias_BHLS: a bias that is added to the scores; its first dimension is B or 1.
        causal: whether the mask forbids every key whose index is larger than that of the query.
        softcap: see `attention_weights`.
    """
    (_, L, H, _), (_, G, S, _) = q_BLHK.shape, k_BGSK.shape
    bias = None if bias_BHLS is None else bias_BHLS.reshape(-1, G, H // G, L, S)
    return _attend(Inputs(q_BLHK, k_BGSK, v_BGSK, mask_BLS[:, None, None], bias), causal, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(inputs: Inputs, causal: bool, softcap: float) -> Array:
    return _forward(inputs, causal, softcap)[0]


def _forward(inputs: Inputs, causal: bool, softcap: float) -> tuple[Array, Any]:
    def piece(tensors: tuple[Inputs]) -> tuple[Array, Array]:
        found = [attend(block) for block in _blocks(*tensors, inputs.bias, causal)]
        y_BLHK, log_total_BLH = (jnp.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return y_BLHK, log_total_BLH

    def attend(block: Block) -> tuple[Array, Array]:
        scores_BGMS = _product("BGMK,BGSK->BGMS", block.q, block.k)
        scores_BGRLS, _ = _masked(scores_BGMS.reshape(block.shape), block.mask, block.bias, softcap)
        scores_BGMS = scores_BGRLS.reshape(scores_BGMS.shape)
        largest_BGM = jnp.max(scores_BGMS, axis=-1)
        weights_BGMS = jnp.exp(scores_BGMS - largest_BGM[..., None])
        total_BGM = jnp.sum(weights_BGMS, axis=-1)
        y_BGMK = _product("BGMS,BGSK->BGMK", weights_BGMS.astype(block.v.dtype), block.v) / total_BGM[..., None]
        log_total_BGM = jnp.where(largest_BGM == MASKED, jnp.inf, largest_BGM + jnp.log(total_BGM))
        return _joined(y_BGMK, block.shape), _joined(log_total_BGM[..., None], block.shape)[..., 0]

    y, log_total = jax.lax.map(piece, _split(inputs))
    y_BLHK = checkpoint_name(y.reshape(inputs.q.shape).astype(inputs.v.dtype), ATTENTION_OUTPUT)
    log_total_BLH = checkpoint_name(log_total.reshape(inputs.q.shape[:-1]), ATTENTION_OUTPUT)
    return y_BLHK, (inputs, y_BLHK, log_total_BLH)


def _backward(causal: bool, softcap: float, saved: Any, dy_BLHK: Array) -> tuple[Inputs]:
    """Computes the scores with the keys before the queries, as (S, M) (see the module's docstring)."""
    inputs, *outputs = saved

    def piece(total: Array | None, tensors: Any) -> tuple[Array | None, Any]:
        own, *others = tensors
        d_q, d_bias = [], []
        d_k, d_v = jnp.zeros(own.k.shape, jnp.float32), jnp.zeros(own.v.shape, jnp.float32)
        for block in _blocks(own, inputs.bias, causal):
            found = gradients(block, *(each[:, block.span] for each in others))
            rest = [(0, 0), (0, 0), (0, own.k.shape[2] - block.k.shape[2])]
            d_q.append(found[0])
            d_k, d_v = (x + jnp.pad(y, [*rest, (0, 0)]) for x, y in ((d_k, found[1]), (d_v, found[2])))
            if found[3] is not None:
                d_bias.append(jnp.pad(found[3], [*rest, (0, 0), (0, 0)]))
        bias = jnp.concatenate(d_bias, axis=4) if d_bias else None
        if total is not None:
            total, bias = total + jnp.sum(bias, axis=0, keepdims=True), None
        dtype = own.q.dtype
        return total, (jnp.concatenate(d_q, axis=1).astype(dtype), d_k.astype(dtype), d_v.astype(dtype), bias)

    def gradients(block: Block, y_BLHK: Array, log_total_BLH: Array, dy_BLHK: Array) -> tuple[Array | None, ...]:
        (B, G, R, L, S), dtype = block.shape, block.q.dtype
        dy_BGMK, y_BGMK = _grouped(dy_BLHK, G), _grouped(y_BLHK, G)
        log_total_BGM = _grouped(log_total_BLH[..., None], G)[..., 0]
        product_BGM = jnp.sum(dy_BGMK.astype(jnp.float32) * y_BGMK.astype(jnp.float32), axis=-1)
        scores_BGSM = _product("BGSK,BGMK->BGSM", block.k, block.q)
        mask = jnp.moveaxis(block.mask, -1, 2)
        bias = None if block.bias is None else jnp.moveaxis(block.bias, -1, 2)
        scores, slope = _masked(scores_BGSM.reshape(B, G, S, R, L), mask, bias, softcap)
        weights_BGSM = jnp.exp(scores.reshape(scores_BGSM.shape) - log_total_BGM[:, :, None])
        d_weights_BGSM = _product("BGSK,BGMK->BGSM", block.v, dy_BGMK)
        d_scores_BGSM = weights_BGSM * (d_weights_BGSM - product_BGM[:, :, None])
        d_bias = None if bias is None else d_scores_BGSM.reshape(B, G, S, R, L)
        if slope is not None:
            d_scores_BGSM = d_scores_BGSM * slope.reshape(scores_BGSM.shape)
        weights_BGSM, d_scores_BGSM = optimization_barrier((weights_BGSM.astype(dtype), d_scores_BGSM.astype(dtype)))
        k_BGKS = optimization_barrier(jnp.swapaxes(block.k, 2, 3))
        d_q_BGKM = optimization_barrier(_product("BGKS,BGSM->BGKM", k_BGKS, d_scores_BGSM))
        d_q = _joined(jnp.swapaxes(d_q_BGKM, 2, 3), block.shape)
        d_k = _product("BGSM,BGMK->BGSK", d_scores_BGSM, block.q)
        d_v = _product("BGSM,BGMK->BGSK", weights_BGSM, dy_BGMK)
        return d_q, d_k, d_v, d_bias

    start = jnp.zeros_like(jnp.moveaxis(inputs.bias, -1, 2)) if _is_shared(inputs.bias) else None
    d_bias, (*found, row_bias) = jax.lax.scan(piece, start, _split(inputs, *outputs, dy_BLHK))
    d_q, d_k, d_v = (x.reshape(like.shape) for x, like in zip(found, inputs, strict=False))
    if row_bias is not None:
        d_bias = row_bias.reshape(-1, *row_bias.shape[2:])
    if d_bias is not None:
        d_bias = jnp.moveaxis(d_bias, 2, -1)
    return (Inputs(d_q, d_k, d_v, None, d_bias),)


_attend.defvjp(_forward, _backward)


def _product(form: str, a: Array, b: Array) -> Array:
    return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def _masked(scores: Array, mask: Array, bias: Array | None, softcap: float) -> tuple[Array, Array | None]:
    """Returns the scores with the soft cap, the bias and the mask, and the derivative of the soft cap."""
    slope = None
    if softcap:
        capped = jnp.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - capped * capped
    if bias is not None:
        scores = scores + bias
    return jnp.where(mask, scores, MASKED), slope


def _is_shared(bias: Array | None) -> bool:
    return bias is not None and bias.shape[0] == 1


def _grouped(x_BLHK: Array, groups: int) -> Array:
    """Returns (B, G, M, K)."""
    B, L, H, K = x_BLHK.shape
    return jnp.swapaxes(x_BLHK, 1, 2).reshape(B, groups, H // groups * L, K)


def _joined(x_BGMK: Array, shape: tuple[int, int, int, int, int]) -> Array:
    """Returns (B, L, H, K)."""
    B, G, R, L, _ = shape
    return jnp.swapaxes(x_BGMK.reshape(B, G * R, L, -1), 1, 2)


def _split(inputs: Inputs, *others: Array) -> tuple[Any, ...]:
    """Divides the rows of all tensors, except a shared bias, into pieces: (P, rows, ...)."""
    own = inputs._replace(bias=None) if _is_shared(inputs.bias) else inputs
    (B, L, H, _), S = inputs.q.shape, inputs.k.shape[2]
    rows = max(C for C in range(1, B + 1) if B % C == 0 and (C == 1 or 4 * C * H * min(L, BLOCK) * S <= PIECE))
    return jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), (own, *others))


def _blocks(piece: Inputs, bias: Array | None, causal: bool) -> Iterator[Block]:
    """Yields the blocks of a piece. A bias that all rows share is given as `bias`."""
    bias = bias if _is_shared(bias) else piece.bias
    (B, L, H, _), (_, G, S, _) = piece.q.shape, piece.k.shape
    for start in range(0, L, BLOCK):
        span = slice(start, min(start + BLOCK, L))
        seen = span.stop if causal else S
        k, v, mask = piece.k[:, :, :seen], piece.v[:, :, :seen], piece.mask[..., span, :seen]
        block_bias = None if bias is None else bias[..., span, :seen]
        shape = (B, G, H // G, span.stop - start, seen)
        yield Block(span, _grouped(piece.q[:, span], G), k, v, mask, block_bias, shape)
