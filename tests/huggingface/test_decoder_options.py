"""Every model option that a published decoder needs, against that decoder in `transformers` with random weights."""

import dataclasses

import numpy as np
import pytest

from lm.models.parameters import stack_layers
from tests.huggingface.drawn import as_batch, drawn_params, drawn_rows, output_of
from tests.huggingface.published_decoders import DECODERS, LENGTH, build_decoder

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("name", DECODERS)
def test_logits_match_the_published_decoder(name):
    config = DECODERS[name][1]
    params, batch = drawn_params(config), as_batch(drawn_rows((LENGTH, 13, 41), config.vocab_size))
    real_BL = batch.segments > 0
    with torch.inference_mode():
        tokens, mask = (torch.tensor(x, dtype=torch.int64) for x in (batch.tokens, real_BL))
        expected = build_decoder(name, params)(input_ids=tokens, attention_mask=mask).logits.numpy()
    assert expected[real_BL].std() > 0.3
    found = output_of(config, params, batch)
    np.testing.assert_allclose(found[real_BL], expected[real_BL], atol=1e-4)
    scanned = output_of(dataclasses.replace(config, scan_layers=True), stack_layers(params), batch)
    np.testing.assert_allclose(scanned[real_BL], expected[real_BL], atol=1e-4)
