"""Attention in blocks of queries that fit into the cache of a CPU core.

The scores of all rows and heads together are larger than any cache, so plain attention reads and writes main memory for
each of its operations. Here, a loop handles a few rows at a time, and each block of queries in turn. In causal
attention, a block omits the keys that come after it. The scores are never stored. Instead, the backward pass recomputes
those of each block and derives the softmax from the saved logarithm of its denominator (Rabe and Staats 2021; Dao
2022).

On a CPU, XLA's library of kernels is fast only for products that need not transpose a large matrix. The backward pass
therefore arranges the scores with the keys before the queries, (S, M), so that only the narrow matrices of queries,
keys and values must be transposed. Barriers keep XLA from merging these transpositions into the products.

Tensors in bfloat16 are converted block by block and multiplied in float32. Only large products with weight matrices are
faster in bfloat16: in the attention of T5-small, bfloat16 factors made the whole step up to a third slower.

Shape letters: R = H / G heads share keys and values, and these heads have M = R L queries in total.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import optimization_barrier

from lm.batch import Array
from lm.models.transformer.remat import ATTENTION_OUTPUT
from lm.parallel.mesh import current_mesh

BLOCK = 128  # queries per block
PIECE = 3 << 19  # scores that are computed together should not take more bytes than this
SMALL = 3 << 20  # if all scores take fewer bytes, they stay in the cores' caches, so a loop is not worthwhile
LARGE = 16 << 20  # if all scores take more bytes, a loop over small pieces is worthwhile too
MASKED = float(jnp.finfo(jnp.float32).min)  # the score of a masked key


class Inputs(NamedTuple):
    """The input tensors of attention, for all rows or for a piece of them."""

    q: Array  # (B, L, H, K), scaled
    k: Array  # (B, G, S, K)
    v: Array  # (B, G, S, K)
    mask: Array  # bool (B, 1, 1, L, S)
    bias: Array | None  # (B or 1, G, R, L, S)


class Block(NamedTuple):
    """A block of queries from a piece, and the keys that they may attend to. Its tensors are float32."""

    span: slice  # the range of the queries within their rows
    q: Array  # (B, G, M, K)
    k: Array  # (B, G, S, K)
    v: Array  # (B, G, S, K)
    mask: Array  # bool (B, 1, 1, L, S)
    bias: Array | None  # (B or 1, G, R, L, S)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes B, G, R, L, S."""
        (B, G, M, _), (L, S) = self.q.shape, self.mask.shape[3:]
        return B, G, M // L, L, S


def is_worth_blocks(q_BLHK: Array, k_BGSK: Array) -> bool:
    """Returns whether `blocked` is faster than computing all scores at once.

    On several devices, it is not, because a loop over rows that are split over devices would gather them. Nor is it
    if all pieces would be small, for example if the number of rows is prime and the rows are short.
    """
    (B, L, H, _), S = q_BLHK.shape, k_BGSK.shape[2]
    size = 4 * B * H * L * S
    if size <= SMALL or current_mesh() is not None:
        return False
    return size > LARGE or 3 * _block_bytes(_rows_per_piece(B, H, L, S), H, L, S) >= PIECE


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

    Queries, keys and values have the same dtype. A query whose keys are all masked has an arbitrary finite output and
    contributes nothing to the gradients.

    Args:
        bias_BHLS: a float32 bias that is added to the scores; its first dimension is B or 1.
        causal: whether the mask excludes every key whose index is greater than the query's.
        softcap: see `attention_weights`.
    """
    (_, L, H, _), (_, G, S, _) = q_BLHK.shape, k_BGSK.shape
    bias = None if bias_BHLS is None else bias_BHLS.reshape(-1, G, H // G, L, S)
    return _attend(Inputs(q_BLHK, k_BGSK, v_BGSK, mask_BLS[:, None, None], bias), causal, softcap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(inputs: Inputs, causal: bool, softcap: float) -> Array:
    return _forward(inputs, causal, softcap)[0]


def _forward(inputs: Inputs, causal: bool, softcap: float) -> tuple[Array, tuple[Inputs, Array, Array]]:
    def piece(tensors: tuple[Inputs]) -> tuple[Array, ...]:
        found = [_attend_block(block, softcap) for block in _blocks(*tensors, inputs.bias, causal)]
        y_BLHK, log_total_BGRL = zip(*found, strict=True)
        return jnp.concatenate(y_BLHK, axis=1).astype(inputs.v.dtype), jnp.concatenate(log_total_BGRL, axis=3)

    y, log_total = jax.lax.map(piece, _pieces(inputs))
    y_BLHK = checkpoint_name(y.reshape(inputs.q.shape), ATTENTION_OUTPUT)
    log_total_BGRL = checkpoint_name(log_total.reshape(-1, *log_total.shape[2:]), ATTENTION_OUTPUT)
    return y_BLHK, (inputs, y_BLHK, log_total_BGRL)


def _attend_block(block: Block, softcap: float) -> tuple[Array, Array]:
    """Returns the output of a block, (B, L, H, K), and the logarithm of the softmax's denominator, (B, G, R, L)."""
    scores_BGMS = jnp.einsum("BGMK,BGSK->BGMS", block.q, block.k)
    scores, _ = _finish(scores_BGMS.reshape(block.shape), block.mask, block.bias, softcap)
    scores_BGMS = scores.reshape(scores_BGMS.shape)
    largest_BGM = jnp.max(scores_BGMS, axis=-1)
    weights_BGMS = jnp.exp(scores_BGMS - largest_BGM[..., None])
    total_BGM = jnp.sum(weights_BGMS, axis=-1)
    y_BGMK = jnp.einsum("BGMS,BGSK->BGMK", weights_BGMS, block.v) / total_BGM[..., None]
    # If all keys of a query are masked, infinity makes the query's weights 0 in the backward pass.
    log_total_BGM = jnp.where(largest_BGM == MASKED, jnp.inf, largest_BGM + jnp.log(total_BGM))
    B, G, R, L, _ = block.shape
    return _ungrouped(y_BGMK, L), log_total_BGM.reshape(B, G, R, L)


def _backward(causal: bool, softcap: float, saved: tuple[Inputs, Array, Array], dy_BLHK: Array) -> tuple[Inputs]:
    inputs, y_BLHK, log_total_BGRL = saved

    def piece(shared_bias: Array | None, tensors: tuple[Any, ...]) -> tuple[Array | None, Any]:
        own, y_BLHK, log_total_BGRL, dy_BLHK = tensors
        gradients = []
        for block in _blocks(own, inputs.bias, causal):
            y, dy, log_total = y_BLHK[:, block.span], dy_BLHK[:, block.span], log_total_BGRL[..., block.span]
            gradients.append(_block_gradients(block, softcap, y, log_total, dy))
        q, k, v, bias = zip(*gradients, strict=True)
        keys = own.k.shape[2]
        d_k, d_v = (functools.reduce(jnp.add, _padded(each, keys)) for each in (k, v))
        d_q, d_k, d_v = (x.astype(own.q.dtype) for x in (jnp.concatenate(q, axis=1), d_k, d_v))
        d_bias = None if bias[0] is None else jnp.concatenate(_padded(bias, keys), axis=-1)
        if shared_bias is None or d_bias is None:
            return None, (d_q, d_k, d_v, d_bias)
        return shared_bias + jnp.sum(d_bias, axis=0, keepdims=True), (d_q, d_k, d_v, None)

    bias = _keys_first(inputs.bias)
    start = jnp.zeros_like(bias) if bias is not None and _is_shared(bias) else None
    shared_bias, (*found, own_bias) = jax.lax.scan(piece, start, _pieces(inputs, y_BLHK, log_total_BGRL, dy_BLHK))
    d_q, d_k, d_v = (x.reshape(like.shape) for x, like in zip(found, inputs, strict=False))
    d_bias = shared_bias if own_bias is None else own_bias.reshape(-1, *own_bias.shape[2:])
    return (Inputs(d_q, d_k, d_v, None, None if d_bias is None else jnp.moveaxis(d_bias, 2, -1)),)


def _block_gradients(
    block: Block, softcap: float, y_BLHK: Array, log_total_BGRL: Array, dy_BLHK: Array
) -> tuple[Array, Array, Array, Array | None]:
    """Returns the gradients of q (B, L, H, K), of k and v (B, G, S, K), and of the bias (B, G, S, R, L), if any.

    All of them are float32.
    """
    B, G, R, L, S = block.shape
    y_BGMK, dy_BGMK = (_grouped(x.astype(jnp.float32), G) for x in (y_BLHK, dy_BLHK))
    # Equals the sum over the keys of the weights times their gradients (Dao 2022, appendix B).
    sum_BGM = jnp.sum(dy_BGMK * y_BGMK, axis=-1)
    scores_BGSM = jnp.einsum("BGSK,BGMK->BGSM", block.k, block.q)
    scores, slope = _finish(
        scores_BGSM.reshape(B, G, S, R, L), _keys_first(block.mask), _keys_first(block.bias), softcap
    )
    weights_BGSM = jnp.exp(scores.reshape(scores_BGSM.shape) - log_total_BGRL.reshape(B, G, 1, R * L))
    d_weights_BGSM = jnp.einsum("BGSK,BGMK->BGSM", block.v, dy_BGMK)
    d_scores_BGSM = weights_BGSM * (d_weights_BGSM - sum_BGM[:, :, None])
    d_bias = None if block.bias is None else d_scores_BGSM.reshape(B, G, S, R, L)
    if slope is not None:
        d_scores_BGSM = d_scores_BGSM * slope.reshape(scores_BGSM.shape)
    weights_BGSM, d_scores_BGSM = optimization_barrier((weights_BGSM, d_scores_BGSM))
    k_BGKS = optimization_barrier(jnp.swapaxes(block.k, 2, 3))
    d_q_BGKM = optimization_barrier(jnp.einsum("BGKS,BGSM->BGKM", k_BGKS, d_scores_BGSM))
    d_q_BLHK = _ungrouped(jnp.swapaxes(d_q_BGKM, 2, 3), L)
    d_k_BGSK = jnp.einsum("BGSM,BGMK->BGSK", d_scores_BGSM, block.q)
    d_v_BGSK = jnp.einsum("BGSM,BGMK->BGSK", weights_BGSM, dy_BGMK)
    return d_q_BLHK, d_k_BGSK, d_v_BGSK, d_bias


_attend.defvjp(_forward, _backward)


def _finish(scores: Array, mask: Array, bias: Array | None, softcap: float) -> tuple[Array, Array | None]:
    """Returns the capped, biased and masked scores, and the derivative of the soft cap."""
    slope = None
    if softcap:
        capped = jnp.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - capped * capped
    if bias is not None:
        scores = scores + bias
    return jnp.where(mask, scores, MASKED), slope


def _keys_first(x_BGRLS: Array | None) -> Array | None:
    """Moves the axis of keys before those of heads and queries: (B, G, S, R, L)."""
    return None if x_BGRLS is None else jnp.moveaxis(x_BGRLS, -1, 2)


def _padded(parts: Sequence[Array], keys: int) -> list[Array]:
    """Pads each array, (B, G, S, ...), with zeros up to the given number of keys."""
    return [jnp.pad(x, [(0, keys - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)]) for x in parts]


def _grouped(x_BLHK: Array, groups: int) -> Array:
    """Groups the heads that share keys and values: (B, G, M, K)."""
    B, L, H, K = x_BLHK.shape
    return jnp.swapaxes(x_BLHK, 1, 2).reshape(B, groups, H // groups * L, K)


def _ungrouped(x_BGMK: Array, length: int) -> Array:
    """Reverses `_grouped`: (B, L, H, K)."""
    B, _, _, K = x_BGMK.shape
    return jnp.swapaxes(x_BGMK.reshape(B, -1, length, K), 1, 2)


def _is_shared(bias: Array | None) -> bool:
    return bias is not None and bias.shape[0] == 1


def _pieces(inputs: Inputs, *others: Array) -> tuple[Any, ...]:
    """Divides the rows of all tensors into pieces, (pieces, B, ...). A shared bias is omitted."""
    own = inputs._replace(bias=None) if _is_shared(inputs.bias) else inputs
    (B, L, H, _), S = inputs.q.shape, inputs.k.shape[2]
    rows = _rows_per_piece(B, H, L, S)
    return jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), (own, *others))


def _rows_per_piece(B: int, H: int, L: int, S: int) -> int:
    divisors = (rows for rows in range(1, B + 1) if B % rows == 0)
    return max(rows for rows in divisors if rows == 1 or _block_bytes(rows, H, L, S) <= PIECE)


def _block_bytes(rows: int, H: int, L: int, S: int) -> int:
    """Returns the size of the scores of the largest block of a piece."""
    return 4 * rows * H * min(L, BLOCK) * S


def _blocks(piece: Inputs, bias: Array | None, causal: bool) -> Iterator[Block]:
    """Yields the blocks of a piece. `bias` is the bias of the whole batch, which is used only if all rows share it."""
    bias = bias if _is_shared(bias) else piece.bias
    (_, L, _, _), (_, G, S, _) = piece.q.shape, piece.k.shape
    for start in range(0, L, BLOCK):
        span = slice(start, min(start + BLOCK, L))
        seen = span.stop if causal else S
        q, k, v = (x.astype(jnp.float32) for x in (piece.q[:, span], piece.k[:, :, :seen], piece.v[:, :, :seen]))
        mask = piece.mask[..., span, :seen]
        yield Block(span, _grouped(q, G), k, v, mask, None if bias is None else bias[..., span, :seen])
