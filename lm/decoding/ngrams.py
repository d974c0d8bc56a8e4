"""No n-gram twice: which tokens would complete one that a hypothesis holds already."""

from __future__ import annotations

import jax.numpy as jnp

from lm.batch import Array


def completes_repeat(tokens_RT: Array, length: Array, n: int, num_entries: int) -> Array:
    """bool (R, V): whether token v after the first `length` tokens of row r makes an n-gram that is there already.

    With n = 1, every token that the row holds. Tokens from `length` on are not looked at.
    """
    R, T = tokens_RT.shape
    if n > T:
        return jnp.zeros((R, num_entries), bool)
    ends_E = jnp.arange(n - 1, T)  # places at which an n-gram can end
    same_RE = jnp.broadcast_to(((ends_E < length) & (length >= n - 1))[None], (R, T - n + 1))
    for back in range(1, n):
        latest_R1 = jnp.take(tokens_RT, jnp.maximum(length - back, 0), axis=1)[:, None]
        same_RE &= tokens_RT[:, n - 1 - back : T - back] == latest_R1
    # An index outside is dropped.
    banned_RE = jnp.where(same_RE, tokens_RT[:, n - 1 :], num_entries)
    return jnp.zeros((R, num_entries), bool).at[jnp.arange(R)[:, None], banned_RE].set(True, mode="drop")
