"""The state of the loop that generates tokens, and how new tokens are added to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp

from lm.batch import Array
from lm.decoding.inputs import place_whole
from lm.decoding.sampling import Vocabulary
from lm.parallel.mesh import place_cache


@flax.struct.dataclass
class DecodeState:
    """The state of the loop. T is the maximum number of new tokens."""

    cache: Any  # the model's Cache; None before the prefill
    last_B: Array  # int32: the last token of each row, which is not yet in the cache
    lengths_B: Array  # int32: number of tokens in the cache, which is also the index of the slot for the last token
    ended_B: Array  # bool: whether the row has reached a stop token, T new tokens or the model's last position
    num_new_B: Array  # int32: number of new tokens, including the stop token
    tokens_BT: Array  # int32: the new tokens, padded on the right
    # The PRNG key of each row. New token t of the row is sampled with fold_in(key, t). With drafts, a round that starts
    # at new token t derives all its keys from fold_in(key, t).
    keys_B: Array
    seen_BV: Array | None  # bool: which tokens occur in the row; None if there is no repetition penalty
    capacity: Array  # int32 (): number of tokens that a row of the cache can hold
    source_capacity: int = flax.struct.field(pytree_node=False)  # the same for a source; 0 without sources


def on_devices(state: DecodeState) -> DecodeState:
    """Constrains the sharding of the state. Only the cache is sharded, since every process needs all other arrays."""
    whole = place_whole(dataclasses.replace(state, cache=None))
    return dataclasses.replace(whole, cache=place_cache(state.cache))


def with_tokens(
    state: DecodeState, tokens_BM: Array, counts_B: Array, vocabulary: Vocabulary, max_length: int
) -> DecodeState:
    """Appends the first `counts_B` of M new tokens to each row, up to the end of the row.

    A row ends with a stop token, with its T-th new token, or at the last position of the model.
    """
    (_, M), T = tokens_BM.shape, state.tokens_BT.shape[1]
    rows_B1, index_1M = jnp.arange(tokens_BM.shape[0])[:, None], jnp.arange(M)[None]
    new_B1, length_B1 = state.num_new_B[:, None], state.lengths_B[:, None]
    is_last_BM = (new_B1 + index_1M + 1 >= T) | (length_B1 + index_1M + 2 >= max_length)
    is_last_BM |= vocabulary.ends(tokens_BM)
    before_BM = jnp.cumsum(is_last_BM, axis=1) - is_last_BM  # number of ends before each token
    kept_BM = (index_1M < counts_B[:, None]) & (before_BM == 0)
    counts_B = jnp.sum(kept_BM, axis=1, dtype=jnp.int32)
    # The index T is out of range, so `set` drops the tokens that are not kept.
    slots_BM = jnp.where(kept_BM, new_B1 + index_1M, T)
    seen_BV = state.seen_BV
    if seen_BV is not None:
        seen_BV = seen_BV.at[rows_B1, jnp.where(kept_BM, tokens_BM, seen_BV.shape[1])].set(True, mode="drop")
    last_B = jnp.take_along_axis(tokens_BM, jnp.maximum(counts_B - 1, 0)[:, None], axis=1)[:, 0]
    return dataclasses.replace(
        state,
        last_B=jnp.where(counts_B > 0, last_B, state.last_B),
        lengths_B=state.lengths_B + counts_B,
        ended_B=state.ended_B | jnp.any(kept_BM & is_last_BM, axis=1),
        num_new_B=state.num_new_B + counts_B,
        tokens_BT=state.tokens_BT.at[rows_B1, slots_BM].set(tokens_BM, mode="drop"),
        seen_BV=seen_BV,
    )
