"""Convolution as matrix products against XLA's own: values and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models import convolution
from copymit.models.convolution import (
    MAX_UNFOLDED_POSITIONS,
    convolve,
    convolve_upsampled,
)

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _pad(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return ((size // 2, size // 2),) * 2


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "stride"),
    [
        (4, 4, 3, 1),  # 16 positions: unfolded
        (1, 1, 3, 1),  # padding all around
        (3, 4, 5, 1),
        (4, 5, 3, 1),  # 20 positions: XLA forward, products for the kernel's gradient
        (8, 8, 3, 2),
        (9, 8, 3, 2),
        (10, 8, 1, 1),
        (8, 8, 1, 2),
        (8, 8, 4, 1),  # an even kernel changes the size
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

    @jax.jit
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
    assert 4 * 4 <= MAX_UNFOLDED_POSITIONS < 4 * 5


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


@pytest.mark.parametrize("positions", [1, 60, 120, 1000])
def test_a_kernels_gradient_is_the_same_over_parts_of_a_batch(
    positions, monkeypatch, rng
):
    monkeypatch.setattr(convolution, "PART_POSITIONS", positions)
    inputs = jnp.asarray(rng.standard_normal((6, 5, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4)), jnp.float32)

    def gradient(f):
        options = {"dimension_numbers": DIMENSIONS}
        return jax.grad(
            lambda k: jnp.sin(f(inputs, k, (1, 1), _pad(3), **options)).sum()
        )

    ours = gradient(convolve)
    # One image of the six, two, or three, since four do not divide six; or all at once.
    assert ("scan" in str(jax.make_jaxpr(ours)(kernel))) == (positions < 1000)
    expected = gradient(jax.lax.conv_general_dilated)(kernel)
    np.testing.assert_allclose(ours(kernel), expected, atol=1e-4)


def test_fewer_positions_than_channels_that_come_out_are_unfolded():
    def trace(B, channels):
        inputs, kernel = jnp.ones((B, 5, 5, 2)), jnp.ones((3, 3, 2, channels))
        options = {"dimension_numbers": DIMENSIONS}
        return str(
            jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), _pad(3), **options))(
                inputs, kernel
            )
        )

    assert "conv_general_dilated" in trace(1, 24)
    assert "conv_general_dilated" not in trace(1, 25)
    assert "conv_general_dilated" in trace(2, 25)


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


# The first has few positions for its channels and repeats them, the others do not.
@pytest.mark.parametrize("shape", [(1, 2, 3, 16), (2, 6, 5, 3), (4, 8, 8, 2)])
def test_convolving_upsampled_inputs_equals_repeating_them_first(shape, rng):
    inputs = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, shape[-1], 5)), jnp.float32)
    padding = ((1, 1), (1, 1))

    def expected(inputs, kernel):
        upsampled = inputs.repeat(2, axis=1).repeat(2, axis=2)
        return jax.lax.conv_general_dilated(
            upsampled,
            kernel,
            (1, 1),
            padding,
            dimension_numbers=DIMENSIONS,
        )

    def found(inputs, kernel):
        options = {"dimension_numbers": DIMENSIONS}
        return convolve_upsampled(inputs, kernel, (1, 1), padding, **options)

    # Kernels are summed before they meet the inputs: 1e-6 of sums of up to 144 terms.
    np.testing.assert_allclose(
        found(inputs, kernel), expected(inputs, kernel), atol=1e-4
    )

    def gradients(f):
        return jax.grad(lambda x, k: jnp.sin(f(x, k)).sum(), argnums=(0, 1))

    for mine, theirs in zip(
        gradients(found)(inputs, kernel),
        gradients(expected)(inputs, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


@pytest.mark.parametrize(
    "padding", [((1, 1), (1, 1)), ((0, 1), (1, 0)), ((0, 0), (1, 1))]
)
@pytest.mark.parametrize("size", [(2, 2), (3, 2)])
def test_uneven_paddings_and_even_kernels_convolve_as_they_should(padding, size, rng):
    inputs = jnp.asarray(rng.standard_normal((2, 4, 5, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((*size, 3, 4)), jnp.float32)
    options = {"dimension_numbers": DIMENSIONS}

    def value(f):
        return lambda x, k: jnp.sin(f(x, k, (1, 1), padding, **options)).sum()

    ours = jax.value_and_grad(value(convolve), argnums=(0, 1))(inputs, kernel)
    theirs = jax.value_and_grad(value(jax.lax.conv_general_dilated), argnums=(0, 1))(
        inputs, kernel
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
