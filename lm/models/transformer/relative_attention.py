"""Flash attention with T5's relative position bias for TPUs, as Pallas kernels.

JAX's splash attention supports no bias, and tokamax 0.0.12 supports none on TPUs. JAX's older TPU kernel reads a dense
(B, H, L, S) bias. T5's bias depends only on the distance between query and key, so these kernels read one value per
head and distance. They expand each tile of the bias in vector memory only once for all rows of the batch. No (L, S)
array ever exists in the device's main memory. For the gradient of the bias, each tile writes one sum per distance,
for a total of 2 L^2 / T values per head.

Scores are computed transposed, (keys, queries), because the maxima, the sums and the log-sum-exps of the queries are
then row vectors. The algorithm is FlashAttention-2 (Dao 2023). In the forward pass and for the gradients of the queries
(dq) and of the bias, the outer loop is over blocks of queries. For the gradients of the keys (dk) and values (dv), it
is over blocks of keys.

Shape letters besides those in `lm/batch.py`: M = 2 L - 1 is the number of distances, n is the number of blocks in a
row, T is the size of a block, W = 2 T, and l is the number of lanes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm.batch import Array
from lm.models.transformer.remat import ATTENTION_OUTPUT

LANES = 128  # the number of lanes of a TPU's vector unit; block sizes are multiples of this number
MAX_LENGTH = 8192  # two strips of float32 tiles, each (T, L) in total, must fit in vector memory
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite, so that differences of masked scores are not NaN
NN, NT, TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))


class Shape(NamedTuple):
    """The static arguments of the kernels."""

    causal: bool
    window: int  # if positive, queries attend only to keys less than `window` positions away
    block: int
    interpret: bool


def relative_attention(
    q_BHLK: Array,
    k_BHLK: Array,
    v_BHLK: Array,
    segments_BL: Array,
    bias_HM: Array,
    causal: bool,
    window: int = 0,
    interpret: bool = False,
) -> Array:
    """Computes softmax(q k^T + bias) v within each segment. Returns (B, H, L, K).

    Padding attends to padding. L must be a multiple of 128 and at most MAX_LENGTH. Queries must already be scaled.

    Args:
        bias_HM: float32 (H, 2 L - 1); entry L - 1 + d of a head is added to the scores of keys d positions before the
            query.
        interpret: whether to use Pallas's interpreter, which runs on any platform; meant for tests.
    """
    length = q_BHLK.shape[2]
    assert length % LANES == 0 and length <= MAX_LENGTH, length
    block = 2 * LANES if length % (2 * LANES) == 0 and length <= MAX_LENGTH // 2 else LANES
    shape = Shape(causal, window, block, interpret)
    queries_B1L = segments_BL[:, None]
    keys_BLl = jnp.broadcast_to(segments_BL[:, :, None], (*segments_BL.shape, LANES))
    return _attention(q_BHLK, k_BHLK, v_BHLK, _windows(bias_HM, block), queries_B1L, keys_BLl, shape)


def _windows(bias_HM: Array, block: int) -> Array:
    """Returns the bias values that the tiles need, float32 (H, 2 n - 1, 1, W).

    Row r + n - 1 is for tiles whose block of queries is r blocks after the block of keys. Entry x of a row belongs to
    the distance r T + x if x < T, otherwise to the distance r T + x - W.
    """
    padded = jnp.pad(bias_HM.astype(jnp.float32), ((0, 0), (1, 0)))  # the first distance is now -L
    blocks = padded.reshape(len(bias_HM), -1, block)
    return jnp.concatenate([blocks[:, 1:], blocks[:, :-1]], axis=-1)[:, :, None]


def _skew(x_TW: Array, left: bool) -> Array:
    """Rotates row c of a tile by c lanes. (Pallas's strided rotation is limited to strides within one register.)"""
    block, width = x_TW.shape
    row_TW = lax.broadcasted_iota(jnp.int32, x_TW.shape, 0)
    for bit in range((block - 1).bit_length()):
        rotated = pltpu.roll(x_TW, width - (1 << bit) if left else 1 << bit, 1)
        x_TW = jnp.where((row_TW >> bit) & 1 == 1, rotated, x_TW)
    return x_TW


def _bias_tile(window_1W: Array) -> Array:
    """Returns the bias of a tile, (T keys, T queries): entry (c, a) is for the distance r T + a - c."""
    block = window_1W.shape[1] // 2
    return _skew(jnp.broadcast_to(window_1W, (block, 2 * block)), left=False)[:, :block]


def _bias_gradient(ds_TT: Array) -> Array:
    """Returns the gradient of the bias, (1, W): for each distance in a tile, the sum of the score gradients."""
    padded_TW = jnp.concatenate([ds_TT, jnp.zeros_like(ds_TT)], axis=1)
    return jnp.sum(_skew(padded_TW, left=True), axis=0, keepdims=True)


def _dot(a: Array, b: Array, dimensions: Any) -> Array:
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _scores(q: Array, k: Array, bias_TT: Array, queries_1T: Array, keys_Tl: Array, blocks: Any, shape: Shape) -> Array:
    """Returns the masked scores of a tile, float32 (T keys, T queries)."""
    i, j = blocks
    allowed_TT = jnp.tile(keys_Tl, (1, shape.block // LANES)) == queries_1T
    if shape.causal or shape.window:
        key_TT, query_TT = (lax.broadcasted_iota(jnp.int32, allowed_TT.shape, axis) for axis in (0, 1))
        distance_TT = (i - j) * shape.block + query_TT - key_TT
        if shape.causal:
            allowed_TT &= distance_TT >= 0
        if shape.window:
            allowed_TT &= (distance_TT < shape.window) & (distance_TT > -shape.window)
    return jnp.where(allowed_TT, _dot(k, q, NT) + bias_TT, MASKED)


def _is_needed(i: Array, j: Array, shape: Shape) -> Array:
    """Returns whether query block i and key block j can contain a query-key pair that is not masked by its distance."""
    needed = j <= i if shape.causal else jnp.bool_(True)
    if shape.window:
        nearest = (jnp.abs(i - j) - 1) * shape.block + 1
        needed &= nearest < shape.window
    return needed


def _forward_kernel(shape: Shape, *refs: Any) -> None:
    q, k, v, window, queries, keys, output, logsumexp, tiles, maximum, total, sum_KT = refs
    i, row, j = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(row == 0)
    def _() -> None:
        tiles[j] = _bias_tile(window[0, 0])

    @pl.when(j == 0)
    def _() -> None:
        maximum[...] = jnp.full_like(maximum, MASKED)
        total[...] = jnp.zeros_like(total)
        sum_KT[...] = jnp.zeros_like(sum_KT)

    @pl.when(_is_needed(i, j, shape))
    def _() -> None:
        s_TT = _scores(q[0, 0], k[0, 0], tiles[j], queries[0], keys[0], (i, j), shape)
        old_1T = maximum[...]
        new_1T = jnp.maximum(old_1T, jnp.max(s_TT, axis=0, keepdims=True))
        p_TT, correction_1T = jnp.exp(s_TT - new_1T), jnp.exp(old_1T - new_1T)
        maximum[...] = new_1T
        total[...] = total[...] * correction_1T + jnp.sum(p_TT, axis=0, keepdims=True)
        sum_KT[...] = sum_KT[...] * correction_1T + _dot(v[0, 0], p_TT.astype(v.dtype), TN)

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        output[0, 0] = (sum_KT[...] / total[...]).T.astype(output.dtype)
        logsumexp[0, 0] = maximum[...] + jnp.log(total[...])


def _weights(refs: Any, tiles: Any, index: Array, blocks: Any, shape: Shape) -> tuple[Array, Array]:
    """Returns the attention weights of a tile and the gradient of its scores, both float32 (T keys, T queries)."""
    q, k, v, _, queries, keys, dy, logsumexp, delta = refs
    s_TT = _scores(q[0, 0], k[0, 0], tiles[index], queries[0], keys[0], blocks, shape)
    p_TT = jnp.exp(s_TT - logsumexp[0, 0])
    return p_TT, p_TT * (_dot(v[0, 0], dy[0, 0], NT) - delta[0, 0])


def _query_kernel(shape: Shape, *refs: Any) -> None:
    """Computes dq and, summed over the rows of the batch, the gradient of the bias."""
    *inputs, dq, dwindow, tiles, ds_tiles, sum_TK = refs
    k, window = inputs[1], inputs[3]
    i, row, j = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(row == 0)
    def _() -> None:
        tiles[j] = _bias_tile(window[0, 0])
        ds_tiles[j] = jnp.zeros_like(ds_tiles[j])

    @pl.when(j == 0)
    def _() -> None:
        sum_TK[...] = jnp.zeros_like(sum_TK)

    @pl.when(_is_needed(i, j, shape))
    def _() -> None:
        _, ds_TT = _weights(inputs, tiles, j, (i, j), shape)
        ds_tiles[j] += ds_TT
        sum_TK[...] += _dot(ds_TT.astype(k.dtype), k[0, 0], TN)

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        dq[0, 0] = sum_TK[...].astype(dq.dtype)

    @pl.when(row == pl.num_programs(2) - 1)
    def _() -> None:
        dwindow[0, 0, 0] = _bias_gradient(ds_tiles[j])


def _key_kernel(shape: Shape, *refs: Any) -> None:
    """Computes dk and dv."""
    *inputs, dk, dv, tiles, sum_k_TK, sum_v_TK = refs
    q, window, dy = inputs[0], inputs[3], inputs[6]
    j, row, i = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(row == 0)
    def _() -> None:
        tiles[i] = _bias_tile(window[0, 0])

    @pl.when(i == 0)
    def _() -> None:
        sum_k_TK[...] = jnp.zeros_like(sum_k_TK)
        sum_v_TK[...] = jnp.zeros_like(sum_v_TK)

    @pl.when(_is_needed(i, j, shape))
    def _() -> None:
        p_TT, ds_TT = _weights(inputs, tiles, i, (i, j), shape)
        sum_k_TK[...] += _dot(ds_TT.astype(q.dtype), q[0, 0], NN)
        sum_v_TK[...] += _dot(p_TT.astype(dy.dtype), dy[0, 0], NN)

    @pl.when(i == pl.num_programs(3) - 1)
    def _() -> None:
        dk[0, 0] = sum_k_TK[...].astype(dk.dtype)
        dv[0, 0] = sum_v_TK[...].astype(dv.dtype)


def _call(kernel: Any, shape: Shape, inputs: Any, by_query: bool, outputs: str, scratch: Any) -> Any:
    """Runs a kernel over the grid (heads, outer blocks, rows, inner blocks).

    Args:
        by_query: whether the outer blocks are blocks of queries; otherwise, they are blocks of keys.
        outputs: the kinds of outputs, one letter each, as in `specs` below.
    """
    rows, heads, length, size = inputs[0].shape
    block, n = shape.block, length // shape.block

    def spec(dimensions: tuple[int, ...], index: Any) -> pl.BlockSpec:
        # The grid is (head, outer, row, inner); `index` takes (head, query block, row, key block).
        return pl.BlockSpec(dimensions, index if by_query else lambda h, j, b, i: index(h, i, b, j))

    def last(h: Array, i: Array, b: Array, j: Array) -> Any:
        # Before the last row, all steps use the same block, so that no unfinished sum is written.
        return h, i, jnp.where(b == rows - 1, j, 0), 0, 0

    specs = {
        "q": spec((1, 1, block, size), lambda h, i, b, j: (b, h, i, 0)),
        "k": spec((1, 1, block, size), lambda h, i, b, j: (b, h, j, 0)),
        "w": spec((1, 1, 1, 2 * block), lambda h, i, b, j: (h, i - j + n - 1, 0, 0)),
        "s": spec((1, 1, block), lambda h, i, b, j: (b, 0, i)),
        "t": spec((1, block, LANES), lambda h, i, b, j: (b, j, 0)),
        "l": spec((1, 1, 1, block), lambda h, i, b, j: (b, h, 0, i)),
        "d": spec((1, 1, 1, 1, 2 * block), last),
    }
    heads_first = inputs[0].shape
    results = {
        "q": jax.ShapeDtypeStruct(heads_first, inputs[0].dtype),
        "k": jax.ShapeDtypeStruct(heads_first, inputs[1].dtype),
        "l": jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32),
        "d": jax.ShapeDtypeStruct((heads, n, n, 1, 2 * block), jnp.float32),
    }
    return pl.pallas_call(
        partial(kernel, shape),
        grid=(heads, n, rows, n),
        in_specs=[specs[kind] for kind in "qkkwstqll"[: len(inputs)]],
        out_specs=[specs[kind] for kind in outputs],
        out_shape=[results[kind] for kind in outputs],
        scratch_shapes=[pltpu.VMEM(each, jnp.float32) for each in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        ),
        interpret=shape.interpret,
        name=kernel.__name__.strip("_"),
    )(*inputs)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q: Array, k: Array, v: Array, windows: Array, queries: Array, keys: Array, shape: Shape) -> Array:
    return _forward(q, k, v, windows, queries, keys, shape)[0]


def _forward(q: Array, k: Array, v: Array, windows: Array, queries: Array, keys: Array, shape: Shape) -> Any:
    size, block = q.shape[-1], shape.block
    strip = (q.shape[2] // block, block, block)
    scratch = (strip, (1, block), (1, block), (size, block))
    inputs = (q, k, v, windows, queries, keys)
    # The names let a rematerialisation policy keep both arrays, so that the backward pass need not rerun this kernel.
    y, logsumexp = (
        checkpoint_name(x, ATTENTION_OUTPUT) for x in _call(_forward_kernel, shape, inputs, True, "ql", scratch)
    )
    return y, (*inputs, y, logsumexp)


def _backward(shape: Shape, residuals: Any, dy: Array) -> Any:
    *inputs, y, logsumexp = residuals
    size, block = dy.shape[-1], shape.block
    n = dy.shape[2] // block
    delta = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)[:, :, None]
    everything, strip = (*inputs, dy, logsumexp, delta), (n, block, block)
    dq, dtiles = _call(_query_kernel, shape, everything, True, "qd", (strip, strip, (block, size)))
    dk, dv = _call(_key_kernel, shape, everything, False, "kk", (strip, (block, size), (block, size)))
    rank = jnp.arange(n)[:, None] - jnp.arange(n)[None, :] + n - 1  # the row of `_windows` that each tile reads
    dwindows = jnp.zeros_like(inputs[3]).at[:, rank].add(dtiles)
    return dq, dk, dv, dwindows, None, None


_attention.defvjp(_forward, _backward)
