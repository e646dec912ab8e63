"""Loops are counted as often as they run, by programs compiled here and by a TPU's text."""

import jax
import jax.numpy as jnp
import pytest

from copymit.plan.cost import count_collectives
from copymit.plan.loops import loop_factors, read_program, runs
from copymit.plan.programs import ask_compiler

N = 64


def cost_of(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return ask_compiler(jax.jit(function).lower(*arrays), {})


def repeated(times):
    """Multiplies with a matrix so many times, after another product."""

    def function(x, w):
        x = x @ w
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, times)[0]

    return function


@pytest.mark.parametrize("times", [2, 9])
def test_what_a_loop_computes_counts_as_often_as_it_runs(times):
    cost = cost_of(repeated(times), (N, N), (N, N))
    # Beside the products only sums and indices: 1 in 64.
    assert cost.flops == pytest.approx((1 + times) * 2 * N**3, rel=0.03)
    # A product reads and writes three matrices, tanh two more if it is not fused.
    matrix = 4 * N**2
    assert 3 * matrix * (1 + times) <= cost.accessed <= 6 * matrix * (1 + times)


def test_a_loop_in_a_loop_counts_as_often_as_both():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (repeated(5)(x, w), None), x, None, 3)[0]

    cost = cost_of(function, (N, N), (N, N))
    assert cost.flops == pytest.approx(3 * 6 * 2 * N**3, rel=0.03)


def test_convolutions_in_a_loop_count_without_what_pads_them():
    def function(x, kernel, a):
        def convolve(x, _):
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ), None

        return jax.lax.scan(convolve, x, None, 7)[0], a @ a

    cost = cost_of(function, (2, 6, 6, 32), (3, 3, 32, 32), (2 * N, 2 * N))
    # Of 6 rows 4 meet all three rows of the kernel, and 2 at the edges two.
    once = 2 * 2 * (3 * 6 - 2) ** 2 * 32 * 32
    assert cost.flops == pytest.approx(7 * once + 2 * (2 * N) ** 3, rel=0.03)


def test_without_loops_the_compiler_s_numbers_stay():
    lowered = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w).lower(*[jnp.ones((8, 8))] * 2)
    assert loop_factors(read_program(lowered.compile().as_text())) == (1, 1)


# As libtpu prints a loop: its condition alone says how often it runs.
TPU = """
%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %all-to-all.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-to-all(%x), channel_id=1
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %all-to-all.1)
}

%condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(50)
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.5), direction=LT
}

ENTRY %main.3 (a: bf16[8,128], b: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %all-to-all.2 = bf16[8,128]{1,0:T(8,128)(2,1)} all-to-all(%b), channel_id=2
  %start = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %a)
  %while = (s32[]{:T(128)}, bf16[8,128]) while(%start), condition=%condition, body=%body
  ROOT %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while), index=1
}
"""


def test_how_often_a_loop_of_a_tpu_runs_is_read_from_its_condition():
    program = read_program(TPU)
    often, once = runs(program), runs(program, loops=False)
    assert (often["body"], often["condition"]) == (50, 51)
    assert (once["body"], once["condition"]) == (1, 1)
    assert count_collectives(program) == {"all-to-all": (51, 51 * 2 * 8 * 128)}
    # Of the same work once in the loop and once outside.
    assert loop_factors(program) == (1, pytest.approx(51 / 2, rel=0.01))


def test_a_loop_whose_counter_rises_by_two_runs_half_as_often():
    loop = TPU.replace(
        "  ROOT %t = (",
        "  %i = s32[]{:T(128)} get-tuple-element(%p), index=0\n"
        "  %two = s32[]{:T(128)} constant(2)\n"
        "  %next = s32[]{:T(128)} add(%i, %two)\n"
        "  ROOT %t = (",
    ).replace("tuple(%i, ", "tuple(%next, ")
    assert runs(read_program(loop))["body"] == 25


def test_products_of_many_matrices_that_a_tpu_writes_as_a_convolution_are_counted():
    loop = TPU.replace(
        "%all-to-all.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-to-all(%x), channel_id=1",
        "%q = f32[16,8,64]{2,1,0} copy(%x)\n  %k = f32[16,32,64]{2,1,0} copy(%x)\n"
        "  %all-to-all.1 = f32[16,8,32]{2,1,0} convolution(%q, %k), "
        "window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf",
    ).replace(
        "all-to-all(%b), channel_id=2",
        "dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
    )
    many, one = 2 * 16 * 8 * 32 * 64, 2 * 8 * 128 * 128
    operations, _ = loop_factors(read_program(loop))
    assert operations == pytest.approx((50 * many + one) / (many + one))


def test_a_computation_counts_once_for_each_who_calls_it():
    program = read_program(
        """
%branch (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %ar = f32[4]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %one = f32[4]{0} call(%a), to_apply=%branch
  ROOT %two = f32[4]{0} call(%one), to_apply=%branch
}
"""
    )
    assert count_collectives(program) == {"all-reduce": (2, 2 * 16)}
