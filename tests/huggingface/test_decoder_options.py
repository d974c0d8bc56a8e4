"""Every model option that a published decoder needs, against that decoder in `transformers` with random weights."""

import dataclasses
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm.batch import Batch
from lm.models import build_model
from lm.models.parameters import stack_layers
from tests.huggingface.published_decoders import DECODERS, LENGTH, build_decoder
from tests.trees import flatten, nest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LENGTHS = (LENGTH, 13, 41)


def drawn_params(config):
    """Returns random parameters of unrolled layers: also of norms and biases, and attention far from uniform."""
    shapes = nn.unbox(jax.eval_shape(lambda: build_model(config).initial_params(jax.random.key(0))))

    def draw(path, shape):
        values = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape)
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            return values * 1.2 / np.sqrt(np.prod(shape[: 2 if "/out/" in path else 1]))
        return 0.3 * values + (kind == "scale" and not config.norm_unit_offset)

    return nest({path: draw(path, leaf.shape).astype(np.float32) for path, leaf in flatten(shapes).items()})


def drawn_batch(config):
    """Returns rows of different lengths with padding on the right."""
    tokens_BL = np.random.default_rng(0).integers(3, config.vocab_size, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
    segments_BL = (np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]).astype(np.int32)
    positions_BL = np.broadcast_to(np.arange(max(LENGTHS), dtype=np.int32), tokens_BL.shape)
    return Batch(tokens_BL, tokens_BL, segments_BL.astype(np.float32), positions_BL, segments_BL)


def logits_of(config, params, batch):
    return np.asarray(jax.jit(build_model(config).apply)({"params": params}, batch).logits)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_match_the_published_decoder(name):
    config = DECODERS[name][1]
    params, batch = drawn_params(config), drawn_batch(config)
    real_BL = batch.segments > 0
    with torch.inference_mode():
        tokens, mask = (torch.tensor(x, dtype=torch.int64) for x in (batch.tokens, real_BL))
        expected = build_decoder(name, params)(input_ids=tokens, attention_mask=mask).logits.numpy()
    found = logits_of(config, params, batch)
    assert expected[real_BL].std() > 0.3
    np.testing.assert_allclose(found[real_BL], expected[real_BL], atol=1e-4)
    scanned = logits_of(dataclasses.replace(config, scan_layers=True), stack_layers(params), batch)
    np.testing.assert_allclose(scanned[real_BL], expected[real_BL], atol=1e-4)
