"""Logits at the masked positions alone give the loss and gradient of logits at all positions."""

import flax.linen as nn
import jax
import numpy as np

from lm.batch import Batch
from lm.config import ObjectiveConfig
from lm.models import build_model
from lm.models.heads import MaskedTokens
from lm.objectives.losses import masked_loss
from tests.small_model import small_config

CONFIG = small_config(40, 24, family="encoder", d_ff=16, head_transform=True, output_bias=True, pooler=True)
OBJECTIVE = ObjectiveConfig(name="masked", label_smoothing=0.1, z_loss=1e-3)


def test_loss_and_gradient_match_those_of_all_logits():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 40, (3, 24)).astype(np.int32)
    weights = (rng.random((3, 24)) < 0.2).astype(np.float32)
    weights[1] = 0  # a row without masked tokens
    ones = np.ones((3, 24), np.int32)
    batch = Batch(tokens, rng.integers(3, 40, (3, 24)).astype(np.int32), weights, np.cumsum(ones, 1) - 1, ones)
    assert 0 < np.count_nonzero(weights, axis=1).max() <= 8
    params = nn.unbox(build_model(CONFIG, MaskedTokens(next_sentence=True)).initial_params(jax.random.key(0)))

    def loss(params, max_masked):
        model = build_model(CONFIG, MaskedTokens(max_masked, next_sentence=True))
        output = model.apply({"params": params}, batch)
        assert output.logits.shape == (3, max_masked or 24, 40)
        sums = masked_loss(output, batch, OBJECTIVE)
        return sums.loss + sums.pair_nll, sums

    results = [jax.jit(jax.value_and_grad(lambda p, n=n: loss(p, n), has_aux=True))(params) for n in (0, 8, 24)]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), results[0], other)
