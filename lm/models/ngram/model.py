"""An n-gram model as an implementation of the model protocol: table look-ups in JAX, on any device and any mesh."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from lm.batch import Array, Batch, Output
from lm.config import ModelConfig
from lm.errors import UserError
from lm.models.heads import Head
from lm.models.ngram.smoothing import SMOOTHINGS
from lm.models.ngram.table import ZERO, shapes
from lm.models.protocol import Flops, ParameterCounts

NONE = -1  # stands for a token before the beginning of a text, or for the index of an n-gram that does not exist
CHUNK = 1 << 14  # table entries that are written to the logits at a time


@flax.struct.dataclass
class NgramCache:
    """The last n - 1 tokens of each row, the newest last, int32 (B, n - 1)."""

    tokens_BC: Array

    def repeat_rows(self, k: int) -> Self:
        return dataclasses.replace(self, tokens_BC=jnp.repeat(self.tokens_BC, k, axis=0))

    def take_rows(self, rows_B: Array) -> Self:
        return dataclasses.replace(self, tokens_BC=jnp.take(self.tokens_BC, rows_B, axis=0, mode="clip"))

    def axes(self) -> Any:
        return NgramCache(("batch", "length"))


@dataclass(frozen=True)
class NgramModel:
    """Predicts each token from the n - 1 tokens before it. The logits are natural logarithms of probabilities."""

    config: ModelConfig
    head: Head

    max_source_length: ClassVar[None] = None
    activation_dtype: ClassVar[str] = "float32"
    reads_source: ClassVar[bool] = False
    text_layers: ClassVar[int] = 0

    @classmethod
    def build(cls, config: ModelConfig, head: Head, platform: str | None = None) -> Self:
        return cls(config, head)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.config.max_length

    @property
    def order(self) -> int:
        return self.config.ngram.order

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: NgramCache | None = None, rngs: Any = None
    ) -> Output:
        """Returns the log-probabilities as logits. See `lm.models.protocol.Model.apply`."""
        contexts, params = self.order - 1, variables["params"]
        tokens_BL, segments_BL = batch.tokens, batch.segments
        if cache is None:
            before_BC = jnp.full((len(tokens_BL), contexts), NONE)
            segments_before_BC = jnp.zeros_like(before_BC)
        else:  # the row continues, so all of its tokens are in segment 1
            before_BC, segments_BL = cache.tokens_BC, jnp.minimum(segments_BL, 1)
            segments_before_BC = jnp.ones_like(before_BC)
        every_BK = jnp.concatenate([before_BC, tokens_BL], axis=1)
        segments_BK = jnp.concatenate([segments_before_BC, segments_BL], axis=1)
        length = tokens_BL.shape[1]
        history = []  # the tokens at distances 0, 1, ..., n - 2 from each token, or NONE
        for distance in range(contexts):
            window = slice(contexts - distance, contexts - distance + length)
            same_BL = (segments_BK[:, window] == segments_BL) & (segments_BL > 0)
            history.append(jnp.where(same_BL, every_BK[:, window], NONE).reshape(-1))
        logits_TV = self._log_probs(params, history, tokens_BL.size)
        if cache is not None:  # padding is at the end of a row
            columns_BC = jnp.sum(segments_BL > 0, axis=1)[:, None] + jnp.arange(contexts)[None]
            cache = NgramCache(jnp.take_along_axis(every_BK, columns_BC, axis=1))
        return Output(logits_TV.reshape(*tokens_BL.shape, -1), cache)

    def _log_probs(self, params: Any, history: list[Array], num_tokens: int) -> Array:
        """Returns the log-probability of each word after each of T contexts, float32 (T, V).

        The log-probability of a word w after a context h is ln p(w | h') plus the logarithms of the back-off weights of
        all suffixes of h longer than h', where h' is the longest suffix of h after which w is listed. The logits are
        written from the lowest order to the highest, so that longer contexts overwrite the values of shorter ones.
        """
        contexts = [self._find(params, history[: k + 1][::-1]) for k in range(len(history))]  # of 1, 2, ... tokens
        if shares_equally := SMOOTHINGS[self.config.ngram.smoothing].shares_equally:
            contexts = self._only_longest(params, contexts)
        weights = [  # ln of the back-off weight of each context; 0 if the context does not occur
            jnp.where(nodes_T == NONE, 0.0, params[f"order_{k}"]["back_offs"][jnp.maximum(nodes_T, 0)])
            for k, nodes_T in enumerate(contexts, start=1)
        ]
        zeros_T = jnp.zeros(num_tokens)
        lowest_V = params["order_1"]["log_probs"]
        logits_TV = lowest_V[None] + sum(weights, zeros_T)[:, None]
        if shares_equally:
            known_T = jnp.any(jnp.stack([nodes_T != NONE for nodes_T in contexts] or [zeros_T > 0]), axis=0)
            shared_TV = params["uniform"][None] + sum(weights, zeros_T)[:, None]
            logits_TV = jnp.where(known_T[:, None], shared_TV, logits_TV)
        for k, nodes_T in enumerate(contexts, start=1):
            begins_T, ends_T = self._children(params, k, nodes_T)
            logits_TV = _write(logits_TV, params[f"order_{k + 1}"], begins_T, ends_T, sum(weights[k:], zeros_T))
        return jnp.maximum(logits_TV, ZERO)

    def _find(self, params: Any, words: list[Array]) -> Array:
        """Returns the index of each n-gram in its order, or NONE, int32 (T,). `words` has one (T,) array per word."""
        nodes_T = words[0]
        for k, words_T in enumerate(words[1:], start=1):
            begins_T, ends_T = self._children(params, k, nodes_T)
            table_N = params[f"order_{k + 1}"]["words"]
            low_T = self._bisect(table_N, begins_T, ends_T, words_T)
            found_T = (low_T < ends_T) & (table_N[jnp.minimum(low_T, len(table_N) - 1)] == words_T)
            nodes_T = jnp.where(found_T, low_T, NONE)
        return nodes_T

    def _bisect(self, table_N: Array, begins_T: Array, ends_T: Array, words_T: Array) -> Array:
        """Returns the index of the first entry between `begins_T` and `ends_T` that is not less than the word."""

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low_T, high_T = bounds
            middle_T = (low_T + high_T) // 2
            less_T = (low_T < high_T) & (table_N[jnp.minimum(middle_T, len(table_N) - 1)] < words_T)
            return jnp.where(less_T, middle_T + 1, low_T), jnp.where(less_T, high_T, jnp.minimum(middle_T, high_T))

        return jax.lax.fori_loop(0, self.vocab_size.bit_length(), halve, (begins_T, ends_T))[0]

    def _children(self, params: Any, k: int, nodes_T: Array) -> tuple[Array, Array]:
        """Returns the ranges of the n-grams of order k + 1 that continue the given n-grams of order k."""
        begins, nodes = params[f"order_{k}"]["begins"], jnp.maximum(nodes_T, 0)
        begins_T = begins[nodes]
        return begins_T, jnp.where(nodes_T == NONE, begins_T, begins[nodes + 1])

    def _only_longest(self, params: Any, contexts: list[Array]) -> list[Array]:
        """Replaces all contexts of a token with NONE, except the longest one that has continuations in the table."""
        kept: list[Array] = []
        is_longer_T: Any = False
        for k, nodes_T in reversed(list(enumerate(contexts, start=1))):
            begins_T, ends_T = self._children(params, k, nodes_T)
            kept.append(jnp.where((ends_T > begins_T) & ~jnp.asarray(is_longer_T), nodes_T, NONE))
            is_longer_T = (ends_T > begins_T) | is_longer_T
        return kept[::-1]

    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        raise UserError("an n-gram model has no token vectors; use a neural model.")

    def initial_params(self, key: Array) -> dict[str, Any]:
        """Returns tables of zeros. `lm.models.ngram.settings.fit` computes the tables of a trained model."""
        return jax.tree.map(lambda each: jnp.zeros(*each), self._shapes(), is_leaf=lambda x: isinstance(x, tuple))

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> NgramCache:
        return NgramCache(jnp.full((batch_size, self.order - 1), NONE))

    def parameter_counts(self) -> ParameterCounts:
        leaves = jax.tree.leaves(self._shapes(), is_leaf=lambda x: isinstance(x, tuple))
        return ParameterCounts(0, 0, sum(math.prod(shape) for shape, _ in leaves), 0, 0, num_layers=self.order)

    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        return Flops(0, 0)  # there is no matrix multiplication

    def attention_kernels(self, length: int, source_length: int = 0) -> str:
        return "none"

    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        return 4.0 * length * self.vocab_size

    def _shapes(self) -> dict[str, Any]:
        ngram = self.config.ngram
        assert len(ngram.sizes) == ngram.order - 1, "the n-grams have not been counted"
        return shapes(ngram.order, self.vocab_size, ngram.sizes, SMOOTHINGS[ngram.smoothing].shares_equally)


def _write(logits_TV: Array, table: Any, begins_T: Array, ends_T: Array, added_T: Array) -> Array:
    """Writes the log-probabilities of entries begins_T to ends_T - 1, plus `added_T`, to the logits of their words.

    Contexts differ in their number of entries, so the entries of all contexts are numbered consecutively and written in
    chunks.
    """
    totals_T = jnp.cumsum(ends_T - begins_T)

    def write_chunk(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, logits_TV = state
        numbers = done + jnp.arange(CHUNK)
        rows = jnp.searchsorted(totals_T, numbers, side="right")  # T for numbers past the end
        row = jnp.minimum(rows, len(totals_T) - 1)
        entries = jnp.clip(ends_T[row] - (totals_T[row] - numbers), 0, len(table["words"]) - 1)
        values = table["log_probs"][entries] + added_T[row]
        logits_TV = logits_TV.at[rows, table["words"][entries]].set(values, mode="drop", unique_indices=True)
        return done + CHUNK, logits_TV

    return jax.lax.while_loop(lambda state: state[0] < totals_T[-1], write_chunk, (0, logits_TV))[1]
