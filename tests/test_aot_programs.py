"""The programs that XLA compiles for absent TPUs and GPUs: fused attention, bfloat16, donation, collectives.

Needs the plug-ins of requirements-tpu.txt and requirements-cuda.txt. benchmarks/aot_findings.py compiles for all chips.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from benchmarks.aot_cases import FULLY_SHARDED, MODELS, TARGETS, compile_case
from lm.costs import GIB
from lm.models.transformer.relative_attention import relative_attention
from lm.training.program import instructions, kernel_calls

FAST = {("decoder 124 M", "h100")}
TPUS = {"decoder 124 M": "v6e", "decoder 1.3 B": "v5p", "T5-base": "v5e", "BERT-base": "v5e"}  # a minute for each


def cases():
    for name, tpu in TPUS.items():
        for target in (tpu, "h100"):
            marks = () if (name, target) in FAST else (pytest.mark.exhaustive,)
            yield pytest.param(name, target, marks=marks, id=f"{name.replace(' ', '_')}-{target}")


@pytest.mark.parametrize(("name", "target"), list(cases()))
def test_training_step(name, target):
    if missing := TARGETS[target].missing:
        pytest.skip(f"{missing} is not installed")
    report, messages = compile_case(name, target)
    layers = MODELS[name]["num_layers"]
    # Self-attention of each tower, and cross-attention; with a forward and one or two backward kernels each.
    mechanisms = 3 if name == "T5-base" else 1
    backward = 1 if target == "h100" else 2
    assert report.kernel == ("cudnn" if target == "h100" else "splash")
    assert sum(report.kernels.values()) == layers * mechanisms * (1 + backward)
    assert report.like_scores == set()
    assert report.float32_products == []
    assert not [line for line in messages if "nvoluntary" in line]
    assert report.fits
    # Parameters and two moments in float32.
    split = 8 if name in FULLY_SHARDED else 1
    assert report.donated == pytest.approx(12 * report.parameters / split, rel=0.01)
    gradients = report.collective_bytes["all-reduce"] + report.collective_bytes["reduce-scatter"]
    # Gradients of the layers are summed in bfloat16, those of the embeddings in float32.
    assert 2 * report.parameters <= gradients <= 1.05 * 4 * report.parameters
    gathered = 2 * 2 * report.parameters if name in FULLY_SHARDED else 0
    assert report.collective_bytes["all-gather"] <= 1.05 * gathered


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_keeping_the_outputs_of_attention_saves_the_second_run_of_the_kernel(target):
    if missing := TARGETS[target].missing:
        pytest.skip(f"{missing} is not installed")
    layers = 3
    calls, memory = {}, {}
    for policy in ("full", "attention_output", "dots", "dots_and_attention"):
        report, _ = compile_case("decoder 124 M", target, devices=1, remat=policy, num_layers=layers)
        calls[policy], memory[policy] = sum(report.kernels.values()), report.temporaries / GIB
    backward = 1 if target == "h100" else 2
    assert calls["full"] == calls["dots"] == layers * (2 + backward)
    assert calls["attention_output"] == calls["dots_and_attention"] == layers * (1 + backward)


@pytest.mark.parametrize("length", [256, 8192])
def test_our_kernel_and_its_gradient_compile_for_a_tpu(length):
    """The longest rows need the most vector memory, and have the smaller of the two block sizes."""
    if missing := TARGETS["v5e"].missing:
        pytest.skip(f"{missing} is not installed")
    devices, _ = TARGETS["v5e"].devices(1)
    placed = SingleDeviceSharding(devices[0])

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    q, segments, bias = array(2, 2, length, 64), array(2, length, dtype=jnp.int32), array(2, 2 * length - 1)

    def total(q, k, v, bias, segments):
        return jnp.sum(relative_attention(q, k, v, segments, bias, causal=True).astype(jnp.float32))

    with jax.default_matmul_precision("default"):
        program = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(q, q, q, bias, segments).compile()
    calls = kernel_calls(instructions(program.as_text()))
    assert sorted(re.sub("transpose|jvp|_+", " ", name).strip() for name in calls) == [
        "forward kernel",
        "key kernel",
        "query kernel",
    ]
