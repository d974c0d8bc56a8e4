"""The tokens that decoding may choose."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from lm.batch import Array
from lm.data.tokenizing.base import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that decoding needs."""

    size: int  # a model may have more entries, which are never chosen
    bos_id: int  # never chosen, unless it is also the end token
    eos_id: int  # ends a row; -1 for none
    pad_id: int = 0  # fills a row after its end; may be an ordinary token as well
    pad_is_special: bool = False  # if True, padding is never chosen, unless it is also the end token


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    pad_id = tokenizer.pad_id
    return Vocabulary(tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, pad_id, tokenizer.is_special(pad_id))


def choosable(vocabulary: Vocabulary, num_entries: int) -> Array:
    """Returns, as bool (V,), whether an entry of a model's vocabulary may be chosen."""
    ids_V = jnp.arange(num_entries)
    never_V = ids_V == vocabulary.bos_id
    if vocabulary.pad_is_special:
        never_V |= ids_V == vocabulary.pad_id
    return (ids_V < vocabulary.size) & (~never_V | (ids_V == vocabulary.eos_id))


def completes_repeat(tokens_RT: Array, length: Array, n: int, num_entries: int) -> Array:
    """Returns, as bool (R, V), which tokens complete an n-gram that a row's first `length` tokens already contain.

    With n = 1 these are all tokens of the row. Tokens from index `length` on are ignored.
    """
    R, T = tokens_RT.shape
    if n > T:
        return jnp.zeros((R, num_entries), bool)
    ends_E = jnp.arange(n - 1, T)  # indices at which an n-gram can end
    same_RE = jnp.broadcast_to(((ends_E < length) & (length >= n - 1))[None], (R, T - n + 1))
    for back in range(1, n):
        latest_R1 = jnp.take(tokens_RT, jnp.maximum(length - back, 0), axis=1)[:, None]
        same_RE &= tokens_RT[:, n - 1 - back : T - back] == latest_R1
    banned_RE = jnp.where(same_RE, tokens_RT[:, n - 1 :], num_entries)  # an index out of range is dropped
    return jnp.zeros((R, num_entries), bool).at[jnp.arange(R)[:, None], banned_RE].set(True, mode="drop")
