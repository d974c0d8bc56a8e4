"""The protocol of models: training, evaluation and decoding use nothing else of a model.

A model is an immutable, hashable description: its parameters and its cache are passed in and returned. Two models that
are equal share compiled programs. The Transformer (`lm/models/transformer/`) is one implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from lm.batch import Array, Batch, Output
from lm.models.heads import Head


class Cache(Protocol):
    """The state that a model keeps for each row while it decodes: a pytree of arrays."""

    def repeat_rows(self, k: int) -> Self:
        """Returns a cache in which row i has become the rows i k ... i k + k - 1. Sources stay, shared by k rows."""

    def take_rows(self, rows_B: Array) -> Self:
        """Returns a cache in which row i is what row `rows_B[i]` was, which must have the same source."""

    def axes(self) -> Any:
        """Returns the same tree with the logical axes of each array, a tuple of names, in its place."""


class Model(Protocol):
    """A model of one config with one head."""

    @property
    def head(self) -> Head: ...

    @property
    def kernel(self) -> str:
        """The implementation of its most expensive operation, for the start-up report: xla, or a fused kernel."""

    @property
    def vocab_size(self) -> int:
        """V of the logits of tokens."""

    @property
    def max_length(self) -> int:
        """The most tokens in a row, and in a cache."""

    @property
    def max_source_length(self) -> int | None:
        """The most tokens in a source; None for no limit."""

    @property
    def reads_source(self) -> bool:
        """Whether a batch has a source."""

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: Any = None, rngs: Any = None
    ) -> Output:
        """Returns what the head computes for every token of the batch.

        With a cache, the batch holds the next tokens of each row at their positions, and the output has the cache with
        these tokens in it. Tokens of segment 0 leave no trace in the cache. A model that reads a source takes it from
        the first batch; later batches have source=None, and k consecutive rows may share one source.

        Args:
            variables: {"params": parameters}, float32.
            rngs: {"dropout": key} if train is true and the config has dropout.
        """

    def initial_params(self, key: Array) -> dict[str, Any]:
        """Returns parameters boxed with their logical axes; `flax.linen.unbox` gives plain arrays."""

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        """Returns a cache for rows of up to `capacity` tokens. Only a model whose head predicts text needs one."""

    def parameter_counts(self) -> ParameterCounts:
        """Returns exact counts, without making the parameters."""

    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        """Returns the FLOPs of one row of `length` tokens; a step needs `.train` x batch_size."""

    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        """Returns about how many bytes one row keeps for the backward pass, on one of `tensor` devices."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, grouped by how a mesh splits them and an optimizer treats them."""

    token_embedding: int  # of source and target, where they differ, and of token types
    position_embedding: int
    layers: int  # matrices and biases of all layers
    norms: int
    head: int
    adapters: int = 0  # of low rank, beside the projections of the layers
    num_layers: int = 1  # the layers over which `layers` is spread

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.layers + self.norms + self.head + self.adapters


@dataclass(frozen=True)
class Flops:
    """FLOPs of one row in a forward pass.

    Only matrix products are counted, with two for a multiply-add: norms, softmax and the like are a few percent more.
    Products that rematerialization computes twice are counted once.
    """

    layers: int
    head: int

    @property
    def forward(self) -> int:
        return self.layers + self.head

    @property
    def train(self) -> int:
        """The backward pass has two products for each of the forward pass: the gradients of input and weight."""
        return 3 * self.forward
