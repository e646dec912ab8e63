"""Convolution as matrix products against XLA's own: values and both gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models import convolution
from copymit.models.convolution import MAX_UNFOLDED_POSITIONS, convolve

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _pad(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((size // 2, size // 2),) * 2


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "stride"),
    [
        (8, 8, 3, 1),  # 64 positions: unfolded
        (1, 1, 3, 1),  # padding all around
        (3, 4, 5, 1),
        (8, 9, 3, 1),  # 72 positions: XLA forward, products for the kernel's gradient
        (8, 8, 3, 2),
        (9, 8, 3, 2),
        (10, 8, 1, 1),
        (8, 8, 1, 2),
        (8, 8, 4, 1),  # an even kernel changes the size: XLA's own
    ],
)
def test_values_and_gradients_equal_those_of_xla(height, width, kernel_size, stride):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, height, width, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 5, 6)), jnp.float32)
    strides, padding = (stride, stride), _pad(kernel_size)

    def ours(inputs, kernel):
        return convolve(inputs, kernel, strides, padding, dimension_numbers=DIMENSIONS)

    def reference(inputs, kernel):
        return jax.lax.conv_general_dilated(
            inputs,
            kernel,
            strides,
            padding,
            dimension_numbers=DIMENSIONS,
            precision=jax.lax.Precision.HIGHEST,
        )

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(inputs, kernel):
        expected, pull_expected = jax.vjp(reference, inputs, kernel)
        actual, pull_actual = jax.vjp(ours, inputs, kernel)
        direction = jnp.cos(jnp.arange(expected.size)).reshape(expected.shape)
        return (
            (actual, *pull_actual(direction)),
            (expected, *pull_expected(direction)),
        )

    for actual, expected in zip(*both(inputs, kernel), strict=True):
        assert actual.shape == expected.shape
        # float32 sums of up to 168 products in another order.
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_the_sizes_above_lie_on_both_sides_of_the_limit():
    assert 8 * 8 <= MAX_UNFOLDED_POSITIONS < 8 * 9


def test_both_formulations_agree_on_one_size(monkeypatch):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)
    results = []
    for limit in (36, 35):
        monkeypatch.setattr(convolution, "MAX_UNFOLDED_POSITIONS", limit)
        value, pull = jax.vjp(
            lambda x, k: convolve(x, k, (1, 1), _pad(3), dimension_numbers=DIMENSIONS),
            inputs,
            kernel,
        )
        results.append((value, *pull(jnp.ones_like(value))))
    for one, other in zip(*results, strict=True):
        # float32 sums of up to 72 products in another order.
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_bfloat16_stays_bfloat16():
    inputs = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 2, 3), jnp.bfloat16)
    value, pull = jax.vjp(
        lambda x, k: convolve(x, k, (1, 1), _pad(3), dimension_numbers=DIMENSIONS),
        inputs,
        kernel,
    )
    assert value.dtype == jnp.bfloat16
    assert {gradient.dtype for gradient in pull(value)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(np.asarray(value[0, 1, 1], np.float32), [18.0] * 3)
