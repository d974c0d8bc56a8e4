"""The one batch type that every model reads, the output that it returns, and the legend of all shape letters.

    B  batch (rows)            D  width of the model       N  layers
    L  length of the target    H  query heads              F  width of the MLP
       (or only) side          G  key/value heads          V  vocabulary
    S  keys, or length of the  K  size of a head           P  tokens that have logits
       source                  C  classes                  T  new tokens, or B L tokens in one axis

A name such as `logits_BLV` has shape (B, L, V). `x_TD` is `x_BLD` with B and L flattened into T tokens.
"""

from __future__ import annotations

from typing import Any

import flax.struct

Array = Any  # np.ndarray on the host, jax.Array on devices, jax.ShapeDtypeStruct when abstract


def same_segment(segments_BL: Array, other_segments_BS: Array) -> Array:
    """Returns, as bool (B, L, S), which tokens belong to the same segment; padding belongs to none."""
    others_B1S = other_segments_BS[:, None, :]
    return (segments_BL[:, :, None] == others_B1S) & (others_B1S > 0)


@flax.struct.dataclass
class Source:
    """The input of an encoder: (B, S) arrays. Segment i of the source belongs to segment i of the target."""

    tokens: Array  # int32 (B, S)
    positions: Array  # int32 (B, S): position within the document, from 0
    segments: Array  # int32 (B, S): number of the document within the row, from 1; 0 is padding


@flax.struct.dataclass
class Batch:
    """The input of every model, made by every task: a pytree of (B, L) arrays.

    A row may hold several documents ("packing"). Segments number them from 1 within the row; 0 is padding. A token may
    attend only to tokens of its own segment, so no document sees another.

    The label of a whole text is the target of one of its tokens, the first or the last; all others have weight 0. A tag
    is the target of the first token of its word. For question answering (span_qa) the target is 1 at the first token of
    the answer, 2 at its last token, and 3 where both are one token. For next-sentence prediction the target of each
    first token is 1 if the second text follows the first and else 0; its weight among the masked tokens is 0.
    """

    tokens: Array  # int32 (B, L): input of the model
    targets: Array  # int32 (B, L): token or label to predict at each index; float32 for regression
    weights: Array  # float32 (B, L): weight of each prediction in the loss; 0 where there is none
    positions: Array  # int32 (B, L): position within the document, from 0
    segments: Array  # int32 (B, L): number of the document within the row, from 1; 0 is padding
    source: Source | None = None  # input of an encoder, or for contrastive learning the paired text
    types: Array | None = None  # int32 (B, L): kind of token, for models with model.token_types

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape


@flax.struct.dataclass
class Output:
    """The output of a model. A field that its head does not compute is None."""

    logits: Any = None  # float32 (B, L, V); of labels (B, L, C); of the start and end of an answer (B, L, 2)
    cache: Any = None  # the model's own pytree
    indices: Any = None  # int32 (B, P): the tokens that have logits, which then are (B, P, V); None for all tokens
    next_sentence_logits: Any = None  # float32 (B, L, 2): whether the second text follows; read at the first token
    embedding: Any = None  # float32 (B, D): of the text of each row, of length 1
    paired_embedding: Any = None  # the same of the paired text
