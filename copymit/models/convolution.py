"""Two-dimensional convolution, formulated for the machine that runs it.

Accelerators convolve natively. On a CPU, XLA's convolutions of the smallest feature maps
and those with fewer positions than channels, and gradients with respect to the kernel
at any size, run at a fraction of the speed of matrix products
(benchmarks/convolution.py), so there a convolution becomes products: of unfolded patches
in these cases, else only its kernel's gradient, as one product per kernel position.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from copymit.models.backend import target_backend
from copymit.models.linear import contract_rows
from copymit.sharding import batch_shards

Padding = Sequence[tuple[int, int]]

# Up to this many positions XLA's convolutions are slow: for 2 x 2, 15 times.
MAX_UNFOLDED_POSITIONS = 16

# So many positions of the inputs, once for each kernel position, stay in the caches
# between the copy and the product. From 256 to 2,048 are as fast, twice as fast as all.
PART_POSITIONS = 512

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
    sizes = kernel.shape[:2]
    unit_stride = tuple(strides) == (1, 1)
    if sizes == (1, 1) and unit_stride:
        return contract_rows(inputs, kernel[0, 0])
    padding = tuple((low, high) for low, high in padding)
    overlaps = all(max(p) < k for p, k in zip(padding, sizes, strict=True))
    if target_backend() == "cpu" and unit_stride and overlaps:
        return convolve_by_products(inputs, kernel, padding)
    return jax.lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


def convolve_upsampled(
    inputs: Float[Array, "B h w C"],
    kernel: Float[Array, "3 3 C O"],
    strides: tuple[int, int],
    padding: Padding,
    **options,
) -> Float[Array, "B 2*h 2*w O"]:
    """Convolves with 3 x 3 the inputs of twice the size, every position repeated.

    Four of the nine positions under the kernel are repetitions, other ones for each of
    the four results over one input. Kernels of 2 x 2, summed beforehand, need less than
    half the products: one convolution for all four, unless the kernels are too large
    compared with the feature maps for this to pay.
    """
    B, h, w, C = inputs.shape
    if B * h * w < 2 * C:
        upsampled = inputs.repeat(2, axis=1).repeat(2, axis=2)
        return convolve(upsampled, kernel, strides, padding, **options)
    by_row = _sum_repetitions(kernel)
    kernels = _sum_repetitions(by_row.swapaxes(0, 1)).swapaxes(0, 1)
    kernels = kernels.reshape(2, 2, C, -1)
    results = convolve(inputs, kernels, strides, ((1, 1), (1, 1)), **options)
    results = results.reshape(B, h + 1, w + 1, 2, 2, -1)
    rows = [
        jnp.stack([results[:, i : i + h, j : j + w, j, i] for j in (0, 1)], axis=3)
        for i in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(B, 2 * h, 2 * w, -1)


def _sum_repetitions(kernel: Float[Array, "3 n C *O"]) -> Float[Array, "2 n C 2 *O"]:
    """Sums the kernel positions that meet one input, for both results over it."""
    k = kernel
    even = jnp.stack([k[0], k[1] + k[2]])
    odd = jnp.stack([k[0] + k[1], k[2]])
    return jnp.stack([even, odd], axis=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_by_products(
    inputs: Float[Array, "B h w C"],
    kernel: Float[Array, "kh kw C O"],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "B h2 w2 O"]:
    """Convolves with stride 1 and a padding narrower than the kernel."""
    return _forward(inputs, kernel, padding)[0]


def _forward(inputs, kernel, padding):
    kh, kw = kernel.shape[:2]
    if _unfolds(inputs, kernel):
        patches = jnp.concatenate(_shifts(inputs, kh, kw, padding), axis=-1)
        outputs = contract_rows(patches, kernel.reshape(-1, kernel.shape[-1]))
        return outputs, (None, patches, kernel)
    outputs = jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS
    )
    return outputs, (inputs, None, kernel)


def _backward(padding, residuals, gradient):
    inputs, patches, kernel = residuals
    kh, kw = kernel.shape[:2]
    if patches is None:
        products = _kernel_gradient(inputs, gradient, kh, kw, padding)
    else:
        flat = gradient.reshape(-1, gradient.shape[-1])
        products = patches.reshape(-1, patches.shape[-1]).T @ flat
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    rest = tuple(
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip((kh, kw), padding, strict=True)
    )
    return (
        convolve_by_products(gradient, mirrored, rest),
        products.reshape(kernel.shape).astype(kernel.dtype),
    )


convolve_by_products.defvjp(_forward, _backward)


def _kernel_gradient(
    inputs, gradient, kh: int, kw: int, padding
) -> Float[Array, "{kh}*{kw} C O"]:
    """Sums one product per kernel position over a few examples at a time."""
    B, h, w, C = inputs.shape

    def add(total, part):
        inputs, gradient = part
        flat = gradient.reshape(-1, gradient.shape[-1])
        shifts = _shifts(inputs, kh, kw, padding)
        return total + jnp.stack([x.reshape(-1, C).T @ flat for x in shifts]), None

    most = min(B, max(1, PART_POSITIONS // (h * w)))
    part = max(n for n in range(1, most + 1) if B % n == 0)
    # Where devices share the examples a loop would bring each of them to all.
    if part == B or batch_shards() > 1:
        return add(0.0, (inputs, gradient))[0]
    parts = [x.reshape(-1, part, *x.shape[1:]) for x in (inputs, gradient)]
    zeros = jnp.zeros((kh * kw, C, gradient.shape[-1]), jnp.float32)
    return jax.lax.scan(add, zeros, parts)[0]


def _unfolds(inputs, kernel) -> bool:
    """Returns whether maps are tiny, or patches smaller than what XLA would rearrange.

    That is the kernel, in each call.
    """
    B, h, w, _ = inputs.shape
    return h * w <= MAX_UNFOLDED_POSITIONS or B * h * w <= kernel.shape[-1]


def _shifts(inputs, kh: int, kw: int, padding) -> list[jax.Array]:
    """Returns, for each kernel position, the inputs that it meets."""
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    h, w = padded.shape[1] - kh + 1, padded.shape[2] - kw + 1
    return [padded[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)]
