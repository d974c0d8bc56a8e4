"""Attention in blocks of queries that fit into the cache of a CPU core.

The scores of all rows and heads together are larger than any cache, so plain attention reads and writes main memory for
each of its operations. Here, a loop handles a few rows at a time and, within these rows, one block of queries at
a time. In causal attention, a block omits the keys that come after it. The backward pass recomputes the scores of each
piece, so they are never stored (Rabe and Staats 2021; Dao 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.batch import Array
from lm.parallel.mesh import current_mesh

BLOCK = 128  # queries per block
PIECE = 3 << 19  # the scores that are computed together should not take more bytes than this
SMALL = 16 << 20  # if all scores fit in this many bytes, the cores' shared cache can hold them, and no loop is used


def blocked(
    attend: Callable[..., Array],
    q_BLHK: Array,
    k_BGSK: Array,
    v_BGSK: Array,
    mask_BLS: Array,
    bias_BHLS: Array | None = None,
    causal: bool = False,
) -> Array:
    """Returns `attend(q, k, v, mask, bias)`, (B, L, H, K), computed in pieces if the scores are large.

    On several devices, the result is computed as a whole, since a loop over rows that are split over devices would
    gather them.

    Args:
        attend: a function of all the tensors, such as `dot_product_attention`. It must treat each query independently.
        bias_BHLS: a bias that is added to the scores; its first dimension is B or 1.
        causal: whether the mask forbids every key whose index is larger than that of the query.
    """
    (B, L, H, _), S = q_BLHK.shape, k_BGSK.shape[2]
    if 4 * B * H * L * S <= SMALL or current_mesh() is not None:
        return attend(q_BLHK, k_BGSK, v_BGSK, mask_BLS, bias_BHLS)
    rows = max(C for C in range(1, B + 1) if B % C == 0 and (C == 1 or 4 * C * H * min(L, BLOCK) * S <= PIECE))

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a loop, nothing can be merged with the forward pass
    def piece(tensors: tuple[Array, Array, Array, Array, Array | None]) -> Array:
        q, k, v, mask, row_bias = tensors
        bias = bias_BHLS if row_bias is None else row_bias
        blocks = []
        for start in range(0, L, BLOCK):
            end = min(start + BLOCK, L)
            seen = end if causal else S
            block_bias = None if bias is None else bias[:, :, start:end, :seen]
            keys, values = k[:, :, :seen], v[:, :, :seen]
            blocks.append(attend(q[:, start:end], keys, values, mask[:, start:end, :seen], block_bias))
        return jnp.concatenate(blocks, axis=1)

    per_row_bias = bias_BHLS if bias_BHLS is not None and bias_BHLS.shape[0] == B else None
    split = jax.tree.map(
        lambda x: x.reshape(B // rows, rows, *x.shape[1:]), (q_BLHK, k_BGSK, v_BGSK, mask_BLS, per_row_bias)
    )
    return jax.lax.map(piece, split).reshape(q_BLHK.shape)
