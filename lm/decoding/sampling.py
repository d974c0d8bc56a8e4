"""Chooses the next token: determines which tokens are allowed, and samples from the logits.

The following steps are applied to each row in this order, in float32: exclusion of tokens that may not be chosen;
repetition penalty; temperature; top-k; top-p (of the renormalised distribution after top-k); min-p. With temperature 0,
the token with the largest penalised logit is chosen (greedy decoding), and the last three steps have no effect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Array
from lm.config import SamplingConfig
from lm.data.tokenizing.base import Tokenizer
from lm.decoding.inputs import check_settings

BLOCK = 128  # number of values in a block of `largest` and `draw`


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that decoding needs."""

    size: int  # number of tokens; a model may have additional entries, which are never chosen
    bos_id: int | None  # never chosen, unless it ends a row; None if there is none
    eos_id: int  # a token that ends a row; -1 if there is none
    pad_id: int = 0  # the token that pads a row after its end; may also be an ordinary token
    pad_is_special: bool = False  # if True, pad_id is never chosen, unless it ends a row
    other_stops: tuple[int, ...] = ()  # other tokens that end a row
    decoder_start_id: int | None = None  # the first input of a decoder that reads a source; None means bos_id
    forced_first_id: int | None = None  # the first token of every output of an encoder-decoder; None means any token

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a row."""
        return (self.eos_id, *self.other_stops)

    @property
    def output_start(self) -> list[int]:
        """The fixed tokens with which every output of an encoder-decoder starts."""
        start = self.bos_id if self.decoder_start_id is None else self.decoder_start_id
        assert start is not None, "an encoder-decoder needs a token to start from"
        return [start] if self.forced_first_id is None else [start, self.forced_first_id]

    def ends(self, tokens: Array) -> Array:
        """Returns whether each token ends a row, bool."""
        return jnp.isin(tokens, jnp.array(self.stops))


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    special, pad_id = tokenizer.special_tokens, tokenizer.pad_id
    return Vocabulary(
        tokenizer.vocab_size,
        special.bos,
        special.eos,
        pad_id,
        tokenizer.is_special(pad_id),
        special.other_stops,
        special.decoder_start,
        special.forced_first,
    )


def choosable(vocabulary: Vocabulary, num_entries: int) -> Array:
    """Returns a mask, bool (V,), of the entries in a model's vocabulary that may be chosen."""
    ids_V = jnp.arange(num_entries)
    never_V = ids_V == (-1 if vocabulary.bos_id is None else vocabulary.bos_id)
    if vocabulary.pad_is_special:
        never_V |= ids_V == vocabulary.pad_id
    return (ids_V < vocabulary.size) & (~never_V | vocabulary.ends(ids_V))


def completes_repeat(tokens_RT: Array, lengths_R: Array, n: int, num_entries: int) -> Array:
    """Returns a mask, bool (R, V), of the tokens that would repeat an n-gram of a row.

    Only the first `lengths_R` tokens of each row count.
    """
    R, T = tokens_RT.shape
    if n > T:
        return jnp.zeros((R, num_entries), bool)
    ends_1E, lengths_R1 = jnp.arange(n - 1, T)[None], lengths_R[:, None]  # ends_1E: where an n-gram can end
    same_RE = (ends_1E < lengths_R1) & (lengths_R1 >= n - 1)
    for back in range(1, n):
        latest_R1 = jnp.take_along_axis(tokens_RT, jnp.maximum(lengths_R1 - back, 0), axis=1)
        same_RE &= tokens_RT[:, n - 1 - back : T - back] == latest_R1
    # The index num_entries is out of range, so `set` drops it.
    banned_RE = jnp.where(same_RE, tokens_RT[:, n - 1 :], num_entries)
    return jnp.zeros((R, num_entries), bool).at[jnp.arange(R)[:, None], banned_RE].set(True, mode="drop")


def largest(
    x_BkV: Array, count: int, value: Callable[[Array, Array], Array] = lambda x_BMW, rows_BM: x_BMW
) -> tuple[Array, Array]:
    """Returns the `count` largest values of k * V elements, (B, count), and their indices, as `jax.lax.top_k` does.

    On a CPU, `top_k` is slow for long rows. The largest values are in the blocks with the largest maxima, and ties go
    to the lower index among blocks as well as within a block, so it is enough to search `count` blocks. (The index
    returned for a value of -inf may belong to a different element, but is always below k * V.)

    Args:
        value: maps elements (B, M, W) and the indices of their rows (B, M), from 0 to k - 1, to their values. Within a
            row, a larger element must not have a smaller value, and the value of -inf must be -inf.
    """
    B, k, V = x_BkV.shape
    widths = (*range(BLOCK, BLOCK // 2, -1), *range(BLOCK, 2 * BLOCK))  # without padding, if possible
    width = V if V <= BLOCK else next((n for n in widths if V % n == 0), BLOCK)
    num_blocks = -(-V // width)
    padded_BkV = jnp.pad(x_BkV, ((0, 0), (0, 0), (0, num_blocks * width - V)), constant_values=-jnp.inf)
    blocks_BMW = padded_BkV.reshape(B, k * num_blocks, width)
    rows_BM = jnp.broadcast_to(jnp.arange(k * num_blocks)[None] // num_blocks, (B, k * num_blocks))
    if k * num_blocks > 2 * count:
        maxima_BM = value(jnp.max(blocks_BMW, axis=-1, keepdims=True), rows_BM)[..., 0]
        chosen_BM = jnp.sort(jax.lax.top_k(maxima_BM, count)[1], axis=-1)
    else:
        chosen_BM = jnp.broadcast_to(jnp.arange(k * num_blocks)[None], (B, k * num_blocks))
    blocks_BMW = jnp.take_along_axis(blocks_BMW, chosen_BM[:, :, None], axis=1)
    values_BMW = value(blocks_BMW, jnp.take_along_axis(rows_BM, chosen_BM, axis=1))
    values_BC, at_BC = jax.lax.top_k(values_BMW.reshape(B, -1), count)
    blocks_BC = jnp.take_along_axis(chosen_BM, at_BC // width, axis=1)
    return values_BC, (blocks_BC // num_blocks) * V + (blocks_BC % num_blocks) * width + at_BC % width


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. The defaults sample from the model's own distribution."""

    temperature: float = 1.0  # the divisor of the logits; if 0, the most probable token is chosen
    top_k: int = 0  # keep only the k most probable tokens; 0 keeps all tokens
    top_p: float = 1.0  # keep the smallest set of top tokens with at least this total probability; 1 keeps all
    min_p: float = 0.0  # keep tokens with at least this fraction of the largest probability; 0 keeps all tokens
    repetition_penalty: float = 1.0  # values above 1 make tokens that already occur in the row less probable

    @classmethod
    def of(cls, settings: SamplingConfig, changes: Mapping[str, Any]) -> Self:
        """Returns a config's settings with all changes that are not None. Raises UserError if a setting is invalid."""
        found = dataclasses.asdict(settings) | {name: value for name, value in changes.items() if value is not None}
        sampling = cls(**found)
        sampling.check()
        return sampling

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def check(self) -> None:
        """Raises UserError for the first value that is out of range."""
        usable, penalty = self.greedy or 1e-4 <= self.temperature < math.inf, self.repetition_penalty
        check_settings(
            self,
            ("temperature", usable, "0 (the most probable token) or at least 0.0001"),
            ("top_k", self.top_k >= 0, "a number of tokens, or 0 to keep all tokens"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0 and at most 1 (1 keeps all tokens)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 (which keeps all tokens) and 1"),
            ("repetition_penalty", 0 < penalty < math.inf, "positive (1 means no penalty; values above 1 penalise)"),
        )


def process_logits(logits_BV: Array, seen_BV: Array | None, sampling: Sampling) -> Array:
    """Returns the logits of the distribution to sample from, float32 (B, V). Excluded tokens have logit -inf.

    Only a repetition penalty needs `seen_BV`, a mask of the tokens that each row already contains.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.repetition_penalty != 1:
        # Keskar 2019 (CTRL), section 4.1, divides the logits of all seen tokens, which makes tokens with negative
        # logits more probable. The form used here is the common correction.
        assert seen_BV is not None
        penalty = sampling.repetition_penalty
        penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
    if sampling.greedy:
        return logits_BV
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k > 0:  # tokens that are tied with the k-th most probable one are also kept
        largest_BK, _ = largest(logits_BV[:, None], min(sampling.top_k, logits_BV.shape[-1]))
        # This is not written as largest_BK[:, -1:], because XLA's CPU compiler would then sort the whole row.
        logits_BV = jnp.where(logits_BV >= jnp.min(largest_BK, axis=-1, keepdims=True), logits_BV, -jnp.inf)
    if sampling.top_p < 1:  # the smallest set of most probable tokens with total probability >= p (Holtzman 2020)
        logits_BV = jnp.where(logits_BV >= smallest_of_nucleus(logits_BV, sampling.top_p), logits_BV, -jnp.inf)
    if sampling.min_p > 0:  # tokens at least min_p times as probable as the most probable one (Nguyen 2024)
        largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= largest_B1 + math.log(sampling.min_p), logits_BV, -jnp.inf)
    return logits_BV


def smallest_of_nucleus(logits_BV: Array, top_p: float) -> Array:
    """Returns the smallest x for which tokens with logits above x have a total probability below top_p, (B, 1).

    Uses bisection over all float32 numbers, because sorting a large vocabulary takes ten times as long on a CPU.
    """
    probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 & high_B1) + ((low_B1 ^ high_B1) >> 1)  # the mean, rounded down
        above_BV = logits_BV > _ordered(middle_B1, jnp.float32)
        is_below_B1 = jnp.sum(jnp.where(above_BV, probabilities_BV, 0.0), axis=-1, keepdims=True) < top_p
        return jnp.where(is_below_B1, low_B1, middle_B1), jnp.where(is_below_B1, middle_B1, high_B1)

    highest_B1 = _ordered(jnp.max(logits_BV, axis=-1, keepdims=True), jnp.int32)
    lowest_B1 = _ordered(jnp.full_like(highest_B1, -jnp.inf, jnp.float32), jnp.int32)
    return _ordered(jax.lax.fori_loop(0, 32, halve, (lowest_B1, highest_B1))[1], jnp.float32)


def _ordered(x: Array, dtype: Any) -> Array:
    """Maps float32 numbers to int32 numbers with the same order, or back."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type(bits ^ ((bits >> 31) & 0x7FFFFFFF), dtype)


def choose(logits_BV: Array, keys_B: Array, sampling: Sampling) -> Array:
    """Samples one token per row from processed logits, using the row's own key. Returns int32 (B,)."""
    if sampling.greedy:
        # Equivalent to argmax, but uses two plain reductions, which take a fraction of the time on a CPU.
        is_best_BV = (logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True)) | jnp.isnan(logits_BV)
        ids_1V = jnp.arange(logits_BV.shape[1], dtype=jnp.int32)[None]
        return jnp.min(jnp.where(is_best_BV, ids_1V, ids_1V[0, -1]), axis=-1)
    return draw(logits_BV, keys_B)


def draw(logits_BV: Array, keys_B: Array) -> Array:
    """Samples one token per row from softmax(logits), using the row's own key. Returns int32 (B,).

    Samples a block of tokens, and then a token from this block. `jax.random.categorical` alone would need a random
    number for each token of the vocabulary, which takes ten times as long on a CPU.
    """
    (B, V), blocks = logits_BV.shape, -(-logits_BV.shape[1] // BLOCK)
    padding = (0, 0), (0, blocks * BLOCK - V)
    logits_BMW = jnp.pad(logits_BV, padding, constant_values=-jnp.inf).reshape(B, blocks, BLOCK)
    keys_B2 = jax.vmap(jax.random.split)(keys_B)
    categorical = jax.vmap(jax.random.categorical)
    block_B = categorical(keys_B2[:, 0], jax.nn.logsumexp(logits_BMW, axis=-1))
    logits_BW = jnp.take_along_axis(logits_BMW, block_B[:, None, None], axis=1)[:, 0]
    return (block_B * BLOCK + categorical(keys_B2[:, 1], logits_BW)).astype(jnp.int32)


def row_keys(seed: int, prompts_B: np.ndarray, samples_B: np.ndarray) -> Array:
    """Derives each row's PRNG key only from the seed and the row's prompt and sample indices."""
    fold, key = jax.vmap(jax.random.fold_in, in_axes=(None, 0)), jax.random.key(seed)
    keys_B = fold(key, np.asarray(prompts_B, np.uint32))
    return jax.vmap(jax.random.fold_in)(keys_B, np.asarray(samples_B, np.uint32))
