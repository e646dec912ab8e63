"""Autoencoders without parameters: pixels in [-1, 1] to latents, and back."""

import numpy as np
from jaxtyping import Array, Float


class SpaceToDepth:
    """The lossless autoencoder: each square of pixels becomes one latent position.

    It has no parameters, so a small model can be trained on pixels with the code that
    trains on a VAE's latents.

    Args:
      patch_size: side of the square in pixels.
      scale: latents are pixels times this; pixels on white are far from unit variance.
      shift: subtracted from the pixels before scaling.
    """

    def __init__(self, patch_size: int, scale: float = 1.0, shift: float = 0.0):
        self.downsampling = patch_size
        self.latent_channels = 3 * patch_size**2
        self.scale = scale
        self.shift = shift

    def encode(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B h w c"]:
        """Moves squares of pixels into channels."""
        patches = _split_patches(pixel_values, self.downsampling)
        return (patches - self.shift) * self.scale

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
        """Undoes `encode` exactly."""
        patches = latents / self.scale + self.shift
        return _join_patches(patches, self.downsampling)


class BlockDCT:
    """A fixed lossy autoencoder: the low frequencies of each square of pixels.

    Like JPEG it keeps more of the luminance than of the colour. Without parameters, and
    with a quarter of the pixels' numbers, it lets a small model learn in minutes what it
    would need an hour for on pixels, and leaves no room for high-frequency noise.

    Args:
      patch_size: side of the square in pixels.
      luminance, chrominance: coefficients kept of the sum of the colours and of each of
        its two differences, the lowest frequencies first.
      scale, shift: as in `SpaceToDepth`.
    """

    def __init__(
        self,
        patch_size: int,
        luminance: int,
        chrominance: int,
        scale: float = 1.0,
        shift: float = 0.0,
    ):
        counts = (luminance, chrominance)
        if min(counts) < 1 or max(counts) > patch_size**2:
            raise ValueError(
                f"model.autoencoder keeps luminance={luminance} and chrominance="
                f"{chrominance} coefficients of {patch_size**2}: keep fewer, and at "
                "least 1 of each"
            )
        self.downsampling = patch_size
        self.latent_channels = luminance + 2 * chrominance
        self.scale = scale
        self.shift = shift
        self._basis, self._gain = _dct_basis(patch_size, luminance, chrominance)

    def encode(self, pixel_values: Float[Array, "B H W 3"]) -> Float[Array, "B h w c"]:
        """Transforms each square and keeps its low frequencies."""
        patches = _split_patches(pixel_values - self.shift, self.downsampling)
        return patches @ self._basis.T * (self._gain * self.scale)

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
        """Returns the pixels whose dropped frequencies are zero."""
        patches = latents / (self._gain * self.scale) @ self._basis
        return _join_patches(patches, self.downsampling) + self.shift


def _dct_basis(
    p: int, luminance: int, chrominance: int
) -> tuple[Float[np.ndarray, "c D"], Float[np.ndarray, " c"]]:
    """Builds orthonormal rows over (row, column, colour) and a gain for each.

    The gain rises with the frequency, to make up for about half of the fall of the
    amplitudes of images: coarse structure still comes first out of the noise.
    """
    import scipy.fft

    space = scipy.fft.dct(np.eye(p), axis=0, norm="ortho")
    colour = scipy.fft.dct(np.eye(3), axis=0, norm="ortho")
    frequencies = sorted(np.ndindex(p, p), key=lambda uv: (sum(uv), uv))
    rows, gains = [], []
    for channel, count in enumerate((luminance, chrominance, chrominance)):
        for u, v in frequencies[:count]:
            row = np.einsum("i,j,c->ijc", space[u], space[v], colour[channel])
            rows.append(row.ravel())
            gains.append((1 + u + v) ** 0.8 * (1.0 if channel else 2 / 3))
    return np.array(rows, np.float32), np.array(gains, np.float32)


def _split_patches(
    pixel_values: Float[Array, "B H W 3"], p: int
) -> Float[Array, "B h w c"]:
    B, H, W, C = pixel_values.shape
    if H % p or W % p:
        raise ValueError(
            f"images of {H} x {W} pixels do not divide into patches of {p}: make "
            "data.resolution a multiple of model.autoencoder.patch_size"
        )
    x = pixel_values.reshape(B, H // p, p, W // p, p, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // p, W // p, p * p * C)


def _join_patches(patches: Float[Array, "B h w c"], p: int) -> Float[Array, "B H W 3"]:
    B, h, w, c = patches.shape
    x = patches.reshape(B, h, w, p, p, c // p**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, h * p, w * p, c // p**2)
