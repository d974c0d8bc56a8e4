"""FLOPs and bytes of compiled programs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.program_cost import program_cost
from lm.training.program import COLLECTIVES

PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%sliced (p0: f32[8,4], p1: s32[]) -> f32[2,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %flat = f32[8,4]{1,0} bitcast(%p0)
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%flat, %p1, %p1), dynamic_slice_sizes={2,4}
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %m = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %dot.1 = f32[8,8]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %both = (f32[8,4]{1,0}, /*index=1*/f32[8,4]{1,0}) all-reduce(%m, %m), replica_groups=mesh['a'=4] {'a'}
  %read = f32[8,4]{1,0} get-tuple-element(%both), index=0
  %cut = f32[8,4]{1,0} get-tuple-element(%both), index=1
  %part = f32[2,4]{1,0} fusion(%cut, %i), kind=kLoop, calls=%sliced
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%i, %read)
}

ENTRY %main (a: f32[8,4]) -> (s32[], f32[8,4]) {
  %a = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %whole = bf16[32,4]{1,0:T(8,128)} all-gather(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %moved = f32[8,4]{1,0} all-to-all(%a), replica_groups={{0,1},{2,3}}, dimensions={0}
  %alone = f32[8,4]{1,0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add
  %sent = f32[8,4]{1,0} collective-permute(%a), source_target_pairs={{0,1},{1,0}}
  %gemm = (f32[8,16]{1,0}, s8[64]{0}) custom-call(%a, %sent), custom_call_target="__cublas$gemm", backend_config=GEMM
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %a)
  ROOT %loop = (s32[], f32[8,4]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
""".replace("GEMM", '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}')


def test_loops_tuples_and_slices_are_counted():
    """The array has 128 bytes. Of the two all-reduces in the loop, one is read whole and one is only sliced.

    GPUs compute most products by calls of a library.
    """
    cost = program_cost(PROGRAM)
    assert cost.product_flops == 5 * 2 * 8 * 8 * 4 + 2 * 8 * 16 * 4
    expected = {
        "all-gather": 3 * 128,
        "all-reduce": 5 * 2 * 3 / 4 * 128,
        "reduce-scatter": 5 * 3 / 4 * 128,
        "all-to-all": 128 / 2,
        "collective-permute": 128,
    }
    assert cost.sent == expected
    assert cost.total_sent == sum(expected.values())


@pytest.mark.parametrize("scattered", [True, False])
def test_compiled_loop_matches_the_closed_form(scattered):
    """In a loop of three products over a dimension split over eight devices, partial sums of 16 x 16 are added."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def total(x, y):
        def body(_, pair):
            return None, (pair[0] @ pair[1]).astype(jnp.float32)

        return jax.lax.scan(body, None, (x, y))[1]

    split = (NamedSharding(mesh, P(None, None, "data")), NamedSharding(mesh, P(None, "data", None)))
    out = NamedSharding(mesh, P(None, "data") if scattered else P())
    x, y = (jax.ShapeDtypeStruct((3, *shape), jnp.float32) for shape in ((16, 64), (64, 16)))
    cost = program_cost(jax.jit(total, in_shardings=split, out_shardings=out).lower(x, y).compile().as_text())
    assert cost.product_flops == 3 * 2 * 16 * 16 * 64 // 8
    bytes_added = 3 * 7 / 8 * 4 * 16 * 16
    expected = {"reduce-scatter": bytes_added} if scattered else {"all-reduce": 2 * bytes_added}
    assert cost.sent == dict.fromkeys(COLLECTIVES, 0.0) | expected
