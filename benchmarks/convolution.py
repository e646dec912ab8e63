"""3x3 convolutions with their gradients: copymit's formulation against XLA's own."""

import functools

import jax
import jax.numpy as jnp

from benchmarks.timing import Row, best_of
from copymit.models.convolution import convolve

# (batch, height and width, channels in, channels out), as they occur in small UNets.
SHAPES = [
    (32, 16, 32, 32),
    (32, 16, 96, 96),
    (32, 8, 96, 96),
    (32, 8, 192, 96),
    (32, 4, 192, 192),
    (32, 2, 256, 256),
    (1, 32, 320, 320),
]

_PADDING = ((1, 1), (1, 1))


def native(inputs, kernel):
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), _PADDING, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(inputs, kernel):
    """What the networks call."""
    return convolve(
        inputs,
        kernel,
        (1, 1),
        _PADDING,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _gradients(formulation):
    def loss(inputs, kernel):
        return jnp.sum(formulation(inputs, kernel) ** 2)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def run() -> list[Row]:
    """Times forward pass and both gradients together."""
    rows = []
    for B, size, C, out_channels in SHAPES:
        key = jax.random.key(0)
        inputs = jax.random.normal(key, (B, size, size, C))
        kernel = jax.random.normal(key, (3, 3, C, out_channels))
        seconds = []
        for formulation in (ours, native):
            gradients = functools.partial(_gradients(formulation), inputs, kernel)
            seconds.append(best_of(gradients))
        name = f"conv 3x3 forward and backward, {B}x{size}x{size}x{C} to {out_channels}"
        rows.append(Row(name, seconds[0], "XLA convolution", seconds[1]))
    return rows
