"""Operations counted from shapes, against counts by hand and by the compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.attention import attend
from copymit.models.flops import count_flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_and_convolutions_are_counted_by_hand():
    assert count_flops(jnp.matmul, shape(3, 4, 5), shape(3, 5, 7)) == 2 * 3 * 4 * 5 * 7
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = count_flops(convolve, shape(2, 8, 8, 3), shape(3, 3, 3, 5))
    assert found == 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)


def test_loops_count_as_often_as_they_run_and_calls_once():
    def looped(x):
        step = jax.checkpoint(jax.jit(lambda x, _: (jnp.tanh(x @ x), None)))
        return jax.lax.scan(step, x, None, length=6)[0]

    assert count_flops(looped, shape(4, 4)) == 6 * 2 * 4**3


@pytest.mark.parametrize("implementation", ["xla", "chunked", "blockwise"])
def test_attention_counts_alike_however_it_is_computed(implementation):
    arrays = [shape(2, 128, 4, 8)] * 3
    found = count_flops(lambda *x: attend(*x, implementation=implementation), *arrays)
    assert found == 2 * 2 * (2 * 4 * 128 * 128 * 8)


def test_the_gradient_of_a_product_takes_twice_the_product():
    def loss(x, w):
        return jnp.sum(jnp.sin(x @ w))

    forward = count_flops(loss, shape(6, 8), shape(8, 10))
    backward = count_flops(jax.value_and_grad(loss, (0, 1)), shape(6, 8), shape(8, 10))
    assert backward == 3 * forward
    assert isinstance(forward, int)
    np.testing.assert_equal(forward, 2 * 6 * 8 * 10)
