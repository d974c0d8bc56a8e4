"""What is read from the text of programs: a small one written by hand, and real ones compiled for CPUs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.config import MeshConfig
from lm.parallel.mesh import make_mesh
from lm.training.program import (
    arrays_like_scores,
    collective_bytes,
    float32_products,
    group_size,
    instructions,
    kernel_calls,
)

PROGRAM = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p = (s32[], bf16[8,64]{1,0}) parameter(0)
  %w = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%shard), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %attention = (bf16[2,64]{1,0}, f32[2,64]{1,0}) custom-call(%w), custom_call_target="__cudnn$fmhaSoftmax", metadata={}
  ROOT %t = (s32[], bf16[8,64]{1,0}) tuple(%n, %y)
}

%condition (p.1: (s32[], bf16[8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%n, %limit), direction=LT
}

ENTRY %main (x: bf16[8,64]) -> f32[] {
  %loop = (s32[], bf16[8,64]) while(%i), condition=%condition, body=%body, config={"known_trip_count":{"n":"12"}}
  %gradient = (f32[64]{0}, f32[16,16]{1,0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
  %start = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%c), replica_groups=[1,4]<=[4], dimensions={0}
  %begun = ((f32[16]{0}), f32[4]{0}) reduce-scatter-start(%e), replica_groups=[1,4]<=[4], to_apply=%add
  %scattered = f32[8]{0} reduce-scatter(%d), replica_groups=[2,2]<=[4], to_apply=%add
  %scores = f32[2,3,32,16]{3,2,1,0} fusion(%q), kind=kLoop, calls=%fused
  %splash_fwd.2 = bf16[2] custom-call(%q), custom_call_target="tpu_custom_call"
}
"""


def test_bodies_of_loops_count_as_often_as_they_run():
    program = instructions(PROGRAM)
    assert {each.operation: each.executions for each in program if each.operation in ("custom-call", "compare")} == {
        "custom-call": 1,
        "compare": 12,
    }
    assert kernel_calls(program) == {"fmhaSoftmax": 12, "splash_fwd": 1}


def test_without_a_known_count_the_limit_in_the_condition_counts():
    program = instructions(PROGRAM.replace("known_trip_count", "other"))
    assert kernel_calls(program) == {"fmhaSoftmax": 5, "splash_fwd": 1}


def test_branches_of_a_condition_are_run_by_it():
    inside = "true_computation=%then, false_computation=%else"
    branches = "".join(
        f"%{name} (p: s32[]) -> s32[] {{\n  %t.{name} = s32[] add(%p)\n}}\n" for name in ("then", "else")
    )
    program = f"{branches}\nENTRY %main (x: s32[]) -> s32[] {{\n  %c = s32[] conditional(%x), {inside}\n}}\n"
    assert [each.executions for each in instructions(program)] == [1, 1, 1]


def test_only_a_scalar_is_the_limit_of_a_loop():
    program = PROGRAM.replace("known_trip_count", "other")
    array = "  %offsets = s32[2]{0} constant({0, 3})\n  %limit"
    assert kernel_calls(instructions(program.replace("  %limit", array)))["fmhaSoftmax"] == 5


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("[2,4]<=[4,2]T(1,0), use_global_device_ids=true", 4),
        ("{{0,1,2},{3,4,5}}, use_global_device_ids=true", 3),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}, dimensions={0}", 8),
        ("mesh['data'=2,'fsdp'=4], device_ids=([4,2]T(1,0)) {'data'}, dimensions={0}", 2),
        ("mesh['data'=2,'fsdp'=4], device_ids=(0,2,1,3,4,6,5,7) {'fsdp'}, dimensions={0}", 4),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp':(1)2}, dimensions={0}", 4),
        ("mesh[data=2,fsdp=4] {fsdp:(2)2}", 2),
    ],
)
def test_size_of_a_group_of_devices_in_all_formats(groups, size):
    assert group_size(f"%x), channel_id=1, replica_groups={groups}") == size


def test_unknown_format_of_groups_is_an_error():
    with pytest.raises(ValueError, match="unknown format"):
        group_size("%x), channel_id=1, replica_groups=everyone")


def test_collectives_are_counted_in_bytes():
    sizes = collective_bytes(instructions(PROGRAM))
    assert sizes["all-gather"] == 12 * 64 * 64 * 2 + 16 * 2
    assert sizes["all-reduce"] == 4 * (64 + 16 * 16)
    assert sizes["reduce-scatter"] == 2 * 8 * 4 + 16 * 4
    assert sizes["all-to-all"] == sizes["collective-permute"] == 0


def test_arrays_like_scores_need_both_lengths_and_all_heads():
    program = instructions(PROGRAM)
    assert arrays_like_scores(program, 2, 3, (32, 16)) == {"f32[2, 3, 32, 16]"}
    assert arrays_like_scores(program, 2, 4, (32, 16)) == set()
    assert arrays_like_scores(program, 1, 1, (64, 64)) == {"bf16[64, 64]"}  # the weight has two axes of 64


def test_products_of_float32_matrices_are_found_in_stablehlo():
    def products(equation, a, b):
        x = jax.ShapeDtypeStruct((2, 4, 4), a), jax.ShapeDtypeStruct((2, 4, 4), b)
        return float32_products(jax.jit(lambda x, y: jnp.einsum(equation, x, y)).lower(*x).as_text())

    assert products("bij,bjk->bik", jnp.float32, jnp.float32) == ["2x4x4xf32, 2x4x4xf32"]
    assert products("bij,bjk->bik", jnp.bfloat16, jnp.bfloat16) == []
    assert products("bij,bij->bi", jnp.float32, jnp.float32) == []  # a product of vectors


def test_collectives_of_a_real_program_have_the_size_of_the_gathered_and_summed_arrays():
    """Four devices gather a weight of 64 x 64 in a loop of 3 steps, and sum a gradient of 64 x 64."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=1), jax.devices()[:4])
    rows, replicated = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("fsdp", None))

    def loss(w, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, replicated)
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    w = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=rows)
    program = instructions(jax.jit(loss).lower(w, x).compile().as_text())
    assert collective_bytes(program)["all-gather"] == 3 * 64 * 64 * 4
    assert collective_bytes(program)["all-reduce"] == 4
