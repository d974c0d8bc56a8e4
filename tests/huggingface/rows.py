"""The rows of random tokens that models read in comparisons, and what our models compute for them.

Three texts are laid out in batches of one shape, so that a model is compiled once: one text per row, padded on the
right or on the left, or all of them packed in the first row.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch, Source
from lm.huggingface.base import Folder
from lm.huggingface.importing import load_params
from lm.huggingface.recognising import recognise
from lm.huggingface.weights import TensorInfo
from tests.huggingface.models import END, VOCABULARY

LENGTHS = {"source": (61, 30, 5), "target": (55, 27, 5)}  # tokens of each text
ROW = 96  # tokens per row, at least the sum of the lengths


class MemoryFolder(Folder):
    """A folder that exists only in memory."""

    def __init__(self, config, arrays, source="FOLDER", files=()):
        self.source, self.config, self._arrays, self.other_files = source, config, dict(arrays), dict(files)
        self.tensors = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}

    def _read(self, name):
        return self._arrays[name]


def imported(folder, **options):
    """Returns (published model, parameters). These are loaded on all devices, and then used on one, which is faster."""
    published = recognise(folder, **options)
    return published, jax.device_put(load_params(folder, published), jax.devices()[0])


def texts(side):
    """Returns the tokens of each text. All end with the end token, by which BART classifies."""
    generator = np.random.default_rng(list(LENGTHS).index(side) + 1)
    return [np.append(generator.integers(4, VOCABULARY, length - 1), END) for length in LENGTHS[side]]


def padded(side, left=False):
    """Returns tokens, mask and positions, each (B, L) for the longest text, padded on one side."""
    rows, longest = texts(side), max(LENGTHS[side])
    tokens, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), bool)
    for row, text in enumerate(rows):
        where = slice(longest - len(text), None) if left else slice(len(text))
        tokens[row, where], mask[row, where] = text, True
    return tokens, mask, (np.cumsum(mask, axis=1) - 1) * mask


def laid_out(side, layout):
    """Returns tokens, positions and segments, each int32 (B, ROW)."""
    rows = texts(side)
    arrays = np.zeros((3, len(rows), ROW), np.int32)
    if layout == "packed":
        rows = [np.concatenate(rows)]
        whole = [np.concatenate([np.arange(n) for n in LENGTHS[side]]), np.repeat([1, 2, 3], LENGTHS[side])]
        arrays[:, 0, : len(rows[0])] = [rows[0], *whole]
        return arrays
    tokens, mask, positions = padded(side, left=layout == "left")
    where = slice(ROW - tokens.shape[1], None) if layout == "left" else slice(tokens.shape[1])
    arrays[:, :, where] = tokens * mask, positions, mask
    return arrays


def types_of(positions):
    """Returns the type of each token, 1 for all but the first tokens of a text."""
    return np.int32(positions >= 4)


def batch_of(published, layout="right", text_only=False):
    """Returns a batch whose real tokens are in the same order, whatever the layout. The targets are the tokens."""
    source = Source(*laid_out("source", layout))
    two_sided = reads_pairs(published) and not text_only
    tokens, positions, segments = laid_out("target", layout) if two_sided else vars(source).values()
    return Batch(
        tokens,
        tokens,
        np.float32(segments > 0),
        positions,
        segments,
        source=source if two_sided else None,
        types=types_of(positions) if published.config.model.token_types > 1 else None,
    )


def reads_pairs(published):
    """Returns whether a model reads a source and a target."""
    return published.config.model.family == "encoder_decoder" and published.model.reads_source


def whole_model(published):
    """Returns the model with logits of all tokens, also if training computes only those of masked tokens."""
    model = published.model
    return model.clone(head=model.head.clone(max_masked=0)) if hasattr(model.head, "max_masked") else model


def label_places(config, side="source"):
    """Returns the index of each text's token with the label of the text, among all real tokens in order."""
    ends = np.cumsum(LENGTHS[side])
    return ends - 1 if config.model.pooling == "last" else ends - LENGTHS[side]


def read_values(published, found, segments):
    """Returns {name: values} as `peers.their_outputs` does."""
    config, objective = published.config, published.config.objective.name
    logits = np.asarray(found.logits)[np.asarray(segments) > 0]
    if objective in ("classification", "regression"):
        return {"logits": logits[label_places(config)]}
    if objective == "span_qa":
        return {"start_logits": logits[:, 0], "end_logits": logits[:, 1]}
    if config.objective.next_sentence:
        pairs = np.asarray(found.next_sentence_logits)[np.asarray(segments) > 0]
        return {"prediction_logits": logits, "seq_relationship_logits": pairs[label_places(config)]}
    return {"logits": logits}


def our_outputs(published, params, layouts):
    """Yields the values and the hidden states of each layer, at the real tokens, for each layout."""
    model, text_only = whole_model(published), published.config.objective.name == "contrastive"

    @jax.jit
    def compute(params, batch, text):
        found = None if text_only else model.apply({"params": params}, batch)
        layers = range(model.text_layers + 1)
        return found, [model.token_vectors({"params": params}, text, n) for n in layers]

    for layout in layouts:
        batch, text = batch_of(published, layout), batch_of(published, layout, text_only=True)
        found, vectors = compute(params, *jax.tree.map(jnp.asarray, (batch, text)))
        values = {} if found is None else read_values(published, found, batch.segments)
        yield values, [np.asarray(each)[text.segments > 0] for each in vectors]
