"""The model protocol: the only interface through which training, evaluation and decoding use a model.

A model is immutable and hashable; it holds no arrays, so parameters and cache are passed in and returned. Equal models
share compiled programs. The Transformer (`lm/models/transformer/`) is one implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from lm.batch import Array, Batch, Output
from lm.models.heads import Head


class Cache(Protocol):
    """The state that a model keeps for each row during decoding: a pytree of arrays."""

    def repeat_rows(self, k: int) -> Self:
        """Returns a cache whose rows i*k to i*k + k - 1 are copies of row i. These k rows share one source."""

    def take_rows(self, rows_B: Array) -> Self:
        """Returns a cache whose row i is the former row `rows_B[i]`, which must have the same source."""

    def axes(self) -> Any:
        """Returns the same tree with each array replaced by its logical axes, a tuple of names."""


class Model(Protocol):
    """A model built from a config and a head."""

    @property
    def head(self) -> Head: ...

    @property
    def kernel(self) -> str:
        """The kernel of the most expensive operation, for the start-up report: "xla" or the name of a fused kernel."""

    @property
    def vocab_size(self) -> int:
        """The number V of logits per token."""

    @property
    def max_length(self) -> int:
        """The maximum number of tokens in a row of a batch or of a cache."""

    @property
    def max_source_length(self) -> int | None:
        """The maximum number of tokens in a source; None for no limit."""

    @property
    def reads_source(self) -> bool:
        """Whether the batches of this model have a source."""

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: Any = None, rngs: Any = None
    ) -> Output:
        """Returns the output of the head for the tokens of the batch.

        With a cache, the batch holds the next tokens of each row and their positions, and the output includes the cache
        with these tokens added. Tokens in segment 0 do not affect later outputs. A model that reads a source takes it
        from the first batch; later batches have source=None, and k consecutive rows may share a source.

        Args:
            variables: {"params": parameters}, float32.
            rngs: {"dropout": key} if train is true and the config has dropout.
        """

    @property
    def text_layers(self) -> int:
        """The number of layers that read a text: those of the only tower, or of the encoder of an encoder-decoder."""

    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the vector of each token of the batch after a layer, float32 (B, L, D).

        Layer 0 is the embedding, with positions. Layer `text_layers` is the last one, with the norm that follows it if
        the model has one: the input of the head or, in an encoder-decoder, the output of the encoder.
        """

    def initial_params(self, key: Array) -> dict[str, Any]:
        """Returns initial parameters, boxed with their logical axes; `flax.linen.unbox` returns plain arrays."""

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        """Returns a cache for rows of up to `capacity` tokens. Needed only if the head predicts text."""

    def parameter_counts(self) -> ParameterCounts:
        """Returns exact parameter counts without creating the parameters."""

    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        """Returns the FLOPs for one row of `length` tokens; a training step takes batch_size times their `train`."""

    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        """Estimates the bytes of activations per row kept for the backward pass, on each of `tensor` devices."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts, grouped by how a mesh splits them and how optimizers treat them."""

    token_embedding: int  # including a separate source embedding and token types, if any
    position_embedding: int
    layers: int  # matrices and biases of all layers
    norms: int
    head: int
    adapters: int = 0  # low-rank adapters of the projections in the layers
    num_layers: int = 1  # the number of layers whose parameters `layers` counts

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.layers + self.norms + self.head + self.adapters


@dataclass(frozen=True)
class Flops:
    """FLOPs of the forward pass for one row.

    Only matrix multiplications are counted, with two FLOPs per multiply-add; norms, softmax and the like add a few
    percent. Matrix multiplications that rematerialization repeats are counted once.
    """

    layers: int
    head: int

    @property
    def forward(self) -> int:
        return self.layers + self.head

    @property
    def train(self) -> int:
        """The forward pass plus the backward pass, which computes two gradients for each matrix multiplication."""
        return 3 * self.forward
