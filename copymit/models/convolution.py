"""Two-dimensional convolution, formulated for the machine that runs it.

Accelerators convolve natively. On a CPU, XLA's gradient of a 3x3 convolution with respect
to its kernel runs at a third to two thirds of the speed of matrix products, and its
forward pass too is slower than they are on small feature maps. There a convolution is a
sum of one matrix product per kernel position, of inputs shifted by that position
(benchmarks/convolution.py measures both).
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# On larger feature maps XLA's own forward convolution is the faster one on a CPU.
MAX_SHIFTED_POSITIONS = 64

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    inputs: Float[Array, "B h w C"],
    kernel: Float[Array, "kh kw C O"],
    strides: tuple[int, int],
    padding: Padding,
    **options,
) -> Float[Array, "B h2 w2 O"]:
    """Convolves as `jax.lax.conv_general_dilated` does, in NHWC and HWIO.

    Takes the place of that function in `nnx.Conv(conv_general_dilated=...)`.
    """
    kh, kw = kernel.shape[:2]
    unit_stride = tuple(strides) == (1, 1)
    if (kh, kw) == (1, 1) and unit_stride:
        return inputs @ kernel[0, 0]
    keeps_size = tuple(map(tuple, padding)) == ((kh // 2,) * 2, (kw // 2,) * 2)
    if jax.default_backend() == "cpu" and unit_stride and keeps_size and kh % 2 == 1:
        return convolve_by_shifts(inputs, kernel)
    return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


@jax.custom_vjp
def convolve_by_shifts(
    inputs: Float[Array, "B h w C"], kernel: Float[Array, "kh kw C O"]
) -> Float[Array, "B h w O"]:
    """Convolves with stride 1 and an odd kernel, keeping height and width."""
    kh, kw = kernel.shape[:2]
    _, h, w, _ = inputs.shape
    if h * w > MAX_SHIFTED_POSITIONS:
        padding = ((kh // 2,) * 2, (kw // 2,) * 2)
        return jax.lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS
        )
    products = (
        shifted @ kernel[i, j] for (i, j), shifted in _shifts(inputs, kh, kw)
    )
    return functools.reduce(jnp.add, products)


def _forward(inputs, kernel):
    return convolve_by_shifts(inputs, kernel), (inputs, kernel)


def _backward(residuals, gradient):
    inputs, kernel = residuals
    kh, kw, C, out_channels = kernel.shape
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    flat = gradient.reshape(-1, out_channels)
    products = [x.reshape(-1, C).T @ flat for _, x in _shifts(inputs, kh, kw)]
    kernel_gradient = jnp.stack(products).reshape(kernel.shape)
    return convolve_by_shifts(gradient, mirrored), kernel_gradient


convolve_by_shifts.defvjp(_forward, _backward)


def _shifts(inputs, kh: int, kw: int) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields, for each kernel position, the inputs that it meets."""
    _, h, w, _ = inputs.shape
    pad = ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0))
    padded = jnp.pad(inputs, pad)
    for i in range(kh):
        for j in range(kw):
            yield (i, j), padded[:, i : i + h, j : j + w]
