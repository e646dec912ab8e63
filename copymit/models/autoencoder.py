"""Autoencoders: pixels in [-1, 1] to the latents that diffusion runs on, and back."""

from typing import Protocol

import jax
from jaxtyping import Array, Float


class Autoencoder(Protocol):
    """What training and generation ask of any autoencoder.

    `downsampling` is the ratio of pixel size to latent size, `latent_channels` the
    number of latent channels. Latents are scaled to about unit variance.
    """

    downsampling: int
    latent_channels: int

    def encode(
        self, pixel_values: Float[Array, "B H W 3"], key: jax.Array
    ) -> Float[Array, "B h w c"]: ...

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]: ...


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

    def encode(
        self, pixel_values: Float[Array, "B H W 3"], key: jax.Array | None = None
    ) -> Float[Array, "B h w c"]:
        """Moves squares of pixels into channels; `key` is unused: nothing is sampled."""
        del key
        p = self.downsampling
        B, H, W, C = pixel_values.shape
        if H % p or W % p:
            raise ValueError(
                f"images of {H} x {W} pixels do not divide into patches of {p}: "
                "make data.resolution a multiple of model.autoencoder.patch_size"
            )
        x = pixel_values.reshape(B, H // p, p, W // p, p, C)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // p, W // p, p * p * C)
        return (x - self.shift) * self.scale

    def decode(self, latents: Float[Array, "B h w c"]) -> Float[Array, "B H W 3"]:
        """Undoes `encode` exactly."""
        p = self.downsampling
        B, h, w, c = latents.shape
        x = (latents / self.scale + self.shift).reshape(B, h, w, p, p, c // p**2)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, h * p, w * p, c // p**2)
