"""Two-dimensional convolution, formulated for the machine that runs it.

Accelerators convolve natively. On a CPU, XLA's convolutions of small feature maps, and
their gradients with respect to the kernel at any size, run at a fraction of the speed of
matrix products (benchmarks/convolution.py), so there a convolution becomes products: of
unfolded patches where those fit the caches, else only its kernel's gradient, as one
product per kernel position.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.models.backend import target_backend

Padding = Sequence[tuple[int, int]]

# Up to this many positions the unfolded patches of a batch fit the caches.
MAX_UNFOLDED_POSITIONS = 64

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
    if target_backend() == "cpu" and unit_stride and keeps_size and kh % 2 == 1:
        return convolve_by_products(inputs, kernel)
    return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


@jax.custom_vjp
def convolve_by_products(
    inputs: Float[Array, "B h w C"], kernel: Float[Array, "kh kw C O"]
) -> Float[Array, "B h w O"]:
    """Convolves with stride 1 and an odd kernel, keeping height and width."""
    return _forward(inputs, kernel)[0]


def _forward(inputs, kernel):
    kh, kw = kernel.shape[:2]
    if _unfolds(inputs):
        patches = jnp.concatenate(_shifts(inputs, kh, kw), axis=-1)
        return patches @ kernel.reshape(-1, kernel.shape[-1]), (patches, kernel)
    padding = ((kh // 2,) * 2, (kw // 2,) * 2)
    outputs = jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS
    )
    return outputs, (inputs, kernel)


def _backward(residuals, gradient):
    inputs, kernel = residuals
    kh, kw, _, out_channels = kernel.shape
    factors = [inputs] if _unfolds(inputs) else _shifts(inputs, kh, kw)
    flat = gradient.reshape(-1, out_channels)
    products = [x.reshape(-1, x.shape[-1]).T @ flat for x in factors]
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    return (
        convolve_by_products(gradient, mirrored),
        jnp.stack(products).reshape(kernel.shape),
    )


convolve_by_products.defvjp(_forward, _backward)


def _unfolds(inputs) -> bool:
    return inputs.shape[1] * inputs.shape[2] <= MAX_UNFOLDED_POSITIONS


def _shifts(inputs, kh: int, kw: int) -> list[jax.Array]:
    """Returns, for each kernel position, the inputs that it meets."""
    _, h, w, _ = inputs.shape
    pad = ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0))
    padded = jnp.pad(inputs, pad)
    return [padded[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)]
