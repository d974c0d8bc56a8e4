"""What goes into every model (the one batch type) and what comes out; the legend of all shape letters.

    B  batch (rows)            D  model width              N  layers
    L  length of the decoder-  H  query heads              F  hidden width of the MLP
       side (or only) sequence G  key/value heads          V  vocabulary
    S  keys' or source length  K  size of one head
    C  labels

A name such as `logits_BLV` has shape (B, L, V). `x_TD` is `x_BLD` with B and L flattened into T tokens.
"""

from __future__ import annotations

from typing import Any

import flax.struct

Array = Any  # np.ndarray on the host, jax.Array on devices, jax.ShapeDtypeStruct when abstract


@flax.struct.dataclass
class Source:
    """What an encoder reads: (B, S) arrays. Segment i of the source belongs to segment i of the target."""

    tokens: Array  # int32 (B, S)
    positions: Array  # int32 (B, S): place within the document, from 0
    segments: Array  # int32 (B, S): document within the row, from 1; 0 is padding


@flax.struct.dataclass
class Batch:
    """What every objective produces and every model consumes: a pytree of (B, L) arrays.

    A row may hold several documents ("packing"). Segments number them from 1 within the row; 0 is
    padding. A token may attend only to tokens of its own segment, so no document sees another.

    A label of a whole text is the target of one of its tokens, the first or the last, and all others weigh
    nothing; a tag is the target of its word's first token. For objective.name=span_qa the target is 1 where
    the answer begins, 2 where it ends, 3 where it does both. With objective.next_sentence the target of each
    first token is 1 if the second text follows the first and else 0; it has no weight among the hidden tokens.
    """

    tokens: Array  # int32 (B, L): what the model reads
    targets: Array  # int32 (B, L): what it has to predict at each place; float32 for regression
    weights: Array  # float32 (B, L): weight of each prediction in the loss; 0 where there is none
    positions: Array  # int32 (B, L): place within the document, from 0
    segments: Array  # int32 (B, L): document within the row, from 1; 0 is padding
    source: Source | None = None  # encoder-decoder, and the other text of a pair for contrastive
    types: Array | None = None  # int32 (B, L): kind of token, where model.token_types tells them apart

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape


@flax.struct.dataclass
class Output:
    """What a model gives; None is what its head does not compute."""

    logits: Any = None  # float32 (B, L, V), of labels (B, L, C), of an answer's start and end (B, L, 2)
    cache: Any = None  # lm.models.transformer.cache.Cache
    places: Any = None  # int32 (B, P): the tokens of which there are logits, (B, P, V) then; None: all
    pair_logits: Any = None  # float32 (B, L, 2): whether the second text follows; read at the first token
    embedding: Any = None  # float32 (B, D): of each row, of length 1
    source_embedding: Any = None  # the same of its partner
