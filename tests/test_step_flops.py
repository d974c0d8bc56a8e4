"""The work of a traced training step of T5: what each rematerialisation policy computes a second time."""

import dataclasses

import jax
import pytest

from benchmarks.aot_cases import ROWS, config_of, without_cudnn
from benchmarks.step_flops import work_of
from lm.models.transformer.remat import REMAT_POLICIES
from lm.training.compiled_cost import trace_for

LENGTH, ENCODER, DECODER = 128, 3, 2  # tokens and layers


@pytest.mark.parametrize(
    ("platform", "qk_norm", "policies"),
    [("tpu", "head", list(REMAT_POLICIES)), ("gpu", "none", ["full", "dots_and_attention"])],
)
def test_each_policy_computes_again_what_it_does_not_keep(platform, qk_norm, policies):
    """With "attention", the norms of queries and keys start from the kept projections, which are not computed again."""

    def work(remat):
        sizes = {"num_encoder_layers": ENCODER, "num_layers": DECODER, "qk_norm": qk_norm}
        config = config_of("T5-base", 1, remat=remat, **sizes)
        lengths = {"sequence_length": LENGTH, "source_length": LENGTH}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **lengths))
        with without_cudnn():
            traced, model, _ = trace_for(config, jax.devices()[:1], platform)
        return work_of(traced.jaxpr.jaxpr), model.config

    none, config = work("none")
    attentions = ENCODER + 2 * DECODER
    assert none.forward_kernels == attentions
    # The last projection of an MLP is not needed again: no gradient depends on its result.
    tokens, width = ROWS["T5-base"] * LENGTH, config.num_heads * config.head_dim
    up = 2 * tokens * (ENCODER + DECODER) * config.d_model * config.d_ff
    projections = 2 * tokens * attentions * 4 * config.d_model * width
    products = {"full": up + projections, "attention_output": up + projections, "attention": up}
    for policy in policies:
        found, _ = work(policy)
        assert found.products - none.products == products.get(policy, 0), policy
        assert found.forward_kernels == attentions * (1 if REMAT_POLICIES[policy].attention_output else 2), policy
