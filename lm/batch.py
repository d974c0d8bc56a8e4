"""The batch type that all models read, the output type that they return, and a legend for the shape letters.

B is the number of rows in a batch, L is the length of the target (or of the only text), and S is the length of the
source or the number of keys. D is the model width, E is the width of the token embedding, F is the MLP width, H is the
number of query heads, G is the number of key/value heads, and K is the head size. N is the number of layers, V is the
vocabulary size, C is the number of classes, P is the number of tokens that have logits, and T is the number of new
tokens (or B * L after flattening).
In autoencoders, k is the number of latent vectors of a text, and Z is their size.

An array named `logits_BLV` has the shape (B, L, V). `x_TD` is `x_BLD` with the axes B and L flattened into T.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct

Array = Any  # np.ndarray on the host, jax.Array on devices, jax.ShapeDtypeStruct when abstract


def same_segment(segments_BL: Array, other_segments_BS: Array) -> Array:
    """Returns a bool (B, L, S) mask that is True if both tokens are in the same segment. Padding is in no segment."""
    others_B1S = other_segments_BS[:, None, :]
    return (segments_BL[:, :, None] == others_B1S) & (others_B1S > 0)


@flax.struct.dataclass
class Source:
    """The input of an encoder: (B, S) arrays. Segment i of the source corresponds to segment i of the target."""

    tokens: Array  # int32 (B, S)
    positions: Array  # int32 (B, S): position within the document, from 0
    segments: Array  # int32 (B, S): index of the document within the row, from 1; 0 is padding


@flax.struct.dataclass
class Batch:
    """The input that all tasks produce for all models: a pytree of (B, L) arrays.

    A row may hold several documents ("packing"). Tokens attend only to their own segment, so documents do not affect
    each other.

    The label of a whole text is the target at its first or last token. The other tokens of the text have weight 0. The
    tag of a word is the target at its first token. For question answering (span_qa), the target is 1 at the first token
    of the answer, 2 at its last token, and 3 if the answer is a single token. For next-sentence prediction, the target
    at the first token is 1 if the second text follows the first, and 0 otherwise; the target's weight is 0.

    For word vectors, the type of a token is the radius of its context, and its weight is the number of pairs that it
    forms (for CBOW, 1 if it forms any). The source holds random words (segment 1) and the character n-grams of token i
    (segment i + 2). For GloVe, the tokens and the source are the two words of each pair, and the targets are the counts
    of the pairs.
    """

    tokens: Array  # int32 (B, L): model input
    targets: Array  # int32 (B, L): the token or label to predict at each token; float32 for regression
    weights: Array  # float32 (B, L): weight of each target in the loss; 0 if there is no target
    positions: Array  # int32 (B, L): position within the document, from 0
    segments: Array  # int32 (B, L): index of the document within the row, from 1; 0 is padding
    source: Source | None = None  # the encoder's input; in contrastive learning, the paired text
    types: Array | None = None  # int32 (B, L): token types, for models with model.token_types
    # No row has more segments than this; 0 if there is no known limit.
    max_segments: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape


@flax.struct.dataclass
class VocabularyLogits:
    """Logits (B, L, V) that have not been computed yet, so that a loss can compute them in parts.

    `lm.objectives.chunks` explains why computing them in parts is useful.
    """

    x_BLE: Array  # the input of the projection to the vocabulary
    weights: dict[str, Array]  # the output matrix and, if there is one, the bias
    project: Any = flax.struct.field(pytree_node=False)  # lm.models.vocabulary.VocabularyProjection

    @property
    def vocab_size(self) -> int:
        return self.weights["matrix"].shape[self.project.axes["matrix"].index("vocab")]

    def whole(self) -> Array:
        """Returns the logits, float32 (B, L, V)."""
        return nn.with_logical_constraint(self.project(self.weights, self.x_BLE), ("batch", "length", "vocab"))


@flax.struct.dataclass
class Latents:
    """The latent vectors into which an autoencoder compresses the text of each row: N(mean, exp(log_variance))."""

    mean: Array  # float32 (B, k, Z)
    log_variance: Array | None = None  # float32 (B, k, Z); None if the vectors are points (model.variational=False)


@flax.struct.dataclass
class Output:
    """The output of a model. Fields that the head does not compute are None."""

    # Logits, possibly not yet computed: float32 (B, L, V) for tokens, (B, L, C) for labels, (B, L, 2) for answer spans.
    scores: Any = None
    cache: Any = None  # the model's own Cache
    # bool (B, L, P): whether each of the first P logits is for a true pair of words; later logits are for random pairs
    pairs: Any = None
    indices: Any = None  # int32 (B, P): indices of the tokens with logits (B, P, V); None if all tokens have logits
    next_sentence_logits: Any = None  # float32 (B, L, 2): valid only at the first token of each pair of texts
    penalty: Any = None  # float32 scalar: a sum over targets to add to the summed loss in training
    embedding: Any = None  # float32 (B, D): a unit vector for the text in each row
    paired_embedding: Any = None  # float32 (B, D): a unit vector for the paired text of each row
    latents: Any = None  # the Latents of the sources, if an autoencoder has encoded them

    @property
    def logits(self) -> Array:
        """The logits as an array."""
        return self.scores.whole() if isinstance(self.scores, VocabularyLogits) else self.scores
