"""The dtype of activations, which a platform or model.activation_dtype decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm.models import build_model
from lm.training.program import float32_products
from tests.models.test_attention import make_batch
from tests.small_model import random_params, small_config

BATCH = make_batch(IDS := jnp.arange(8)[None], IDS, jnp.ones_like(IDS))


def test_activations_are_float32_on_a_cpu_and_in_the_compute_dtype_on_other_platforms():
    """Products of rounded factors alone are closer to float32 than if all activations are rounded as well."""
    config = small_config(23, 8, num_layers=2, dtype="bfloat16", norm="rmsnorm", positions="rotary")
    params = random_params(build_model(config))

    def built(platform, **changes):
        return build_model(dataclasses.replace(config, **changes), platform=platform).clone(kernel="xla")

    def traced(model):
        return jax.jit(lambda params: model.apply({"params": params}, BATCH).logits).lower(params)

    for model, expected in (
        (cpu := built("cpu"), "float32"),
        (built("gpu", activation_dtype="float32"), "float32"),
        (built("cpu", activation_dtype="compute"), "bfloat16"),
        (gpu := built("gpu"), "bfloat16"),
        (built("tpu"), "bfloat16"),
    ):
        assert model.activation_dtype == expected
        assert model.empty_cache(1, 4).layers.keys.dtype == expected
        # Only the two products of attention have factors in the dtype of activations.
        assert len(float32_products(traced(model).as_text())) == (2 if expected == "float32" else 0)
    exact = traced(built("cpu", dtype="float32")).compile()(params)
    errors = {
        name: np.abs(traced(model).compile()(params) - exact).mean() for name, model in (("cpu", cpu), ("gpu", gpu))
    }
    assert 0 < errors["cpu"] < 0.8 * errors["gpu"]
