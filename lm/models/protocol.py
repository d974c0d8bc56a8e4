"""The model protocol: the only interface through which training, evaluation and decoding use a model.

A model is immutable and hashable, and it contains no arrays: the parameters and the cache are passed to its methods as
arguments. Models that compare equal reuse the same compiled programs. The Transformer (`lm/models/transformer/`) is one
implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from lm.batch import Array, Batch, Output
from lm.models.heads import Head


class Cache(Protocol):
    """The state that a model keeps for each row during decoding: a pytree of arrays."""

    def repeat_rows(self, k: int) -> Self:
        """Returns a cache in which rows i*k to i*k + k - 1 are copies of row i and share its source."""

    def take_rows(self, rows_B: Array) -> Self:
        """Returns a cache whose row i is a copy of the old row `rows_B[i]`. The two rows must have the same source."""

    def axes(self) -> Any:
        """Returns the cache with each array replaced by a tuple of the names of its logical axes.

        The axis that indexes rows, or groups of rows that share a source, is named "batch".
        """


class Model(Protocol):
    """A model built from a config and a head."""

    def __hash__(self) -> int: ...

    @property
    def head(self) -> Head: ...

    @property
    def vocab_size(self) -> int:
        """The number V of logits per token."""

    @property
    def max_length(self) -> int:
        """The maximum number of tokens in a row of a batch or of a cache."""

    @property
    def max_source_length(self) -> int | None:
        """The maximum number of tokens in a source, or None if there is no limit."""

    @property
    def activation_dtype(self) -> str:
        """The data type of the activations between multiplications by weight matrices."""

    @property
    def reads_source(self) -> bool:
        """Whether the model reads the source of a batch in addition to the batch's tokens."""

    def apply(
        self, variables: Any, batch: Batch, *, train: bool = False, cache: Any = None, rngs: Any = None
    ) -> Output:
        """Returns the output of the head for the tokens of the batch.

        With a cache, the batch holds the next tokens of each row and their positions, and the output includes the
        updated cache. Tokens in segment 0 do not affect later outputs. If the model reads a source, only the first
        batch contains it; later batches have source=None. If there are fewer sources than rows, each source is shared
        by the same number of consecutive rows.

        If data.stateful is set, training and evaluation pass the cache returned for one batch to the call for the next
        batch. A token at position 0 then starts a new text.

        Args:
            variables: {"params": parameters}; all parameters are float32.
            rngs: keys of PRNG streams: "dropout", needed only if `train` is true and the config enables dropout, and
                "latent_noise", needed only to draw latent vectors (`lm.models.bottleneck`).
        """

    @property
    def text_layers(self) -> int:
        """The number of layers that read a text. In an encoder-decoder, only the encoder's layers count."""

    def token_vectors(self, variables: Any, batch: Batch, layer: int) -> Array:
        """Returns the vector of each token in the batch after the given layer, float32 (B, L, D).

        Layer 0 is the embedding, including positions. Layer `text_layers` is the last layer, including the final norm
        if the model has one. The vectors after the last layer are the input of the head. In an encoder-decoder, they
        are the encoder's output.
        """

    def initial_params(self, key: Array) -> dict[str, Any]:
        """Returns new parameters, each boxed with its logical axes. `flax.linen.unbox` extracts plain arrays."""

    def empty_cache(self, batch_size: int, capacity: int, source_length: int = 0) -> Cache:
        """Returns an empty cache for rows of up to `capacity` tokens. `apply` returns a cache with the same shapes.

        Zero-padding the arrays of a cache to the shapes for a larger capacity or source length does not change its
        meaning. The head must predict text.
        """

    def parameter_counts(self) -> ParameterCounts:
        """Computes the exact parameter counts without creating the parameters."""

    def flops_per_row(self, length: int, source_length: int = 0) -> Flops:
        """Returns the FLOPs for one row of `length` tokens. A training step takes batch_size * `Flops.train` FLOPs."""

    def attention_kernels(self, length: int, source_length: int = 0) -> str:
        """Returns a string for reports: the attention kernels that are used for rows of these lengths, or "none"."""

    def activation_bytes(self, length: int, source_length: int, tensor: int) -> float:
        """Estimates how many bytes of activations each of the `tensor` devices keeps per row for the backward pass."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameter counts, grouped by how the parameters are sharded and how optimizers treat them."""

    token_embedding: (
        int  # including the source embedding, the token-type embedding and the projection of all embeddings
    )
    position_embedding: int
    layers: int  # weight matrices and biases of all layers
    norms: int
    head: int
    adapters: int = 0  # low-rank adapters of the layers' projections
    num_layers: int = 1  # the number of layers included in `layers`

    @property
    def total(self) -> int:
        return self.token_embedding + self.position_embedding + self.layers + self.norms + self.head + self.adapters


@dataclass(frozen=True)
class Flops:
    """FLOPs of the forward pass for one row.

    Only matrix multiplications are counted, at two FLOPs per multiply-add. Norms, softmax and similar operations add a
    few percent. A matrix multiplication that is repeated by rematerialisation is counted once.
    """

    layers: int
    head: int

    @property
    def forward(self) -> int:
        return self.layers + self.head

    @property
    def train(self) -> int:
        """FLOPs of the forward and backward passes.

        The backward pass computes two gradients per matrix multiplication.
        """
        return 3 * self.forward
