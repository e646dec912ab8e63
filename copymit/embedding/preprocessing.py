"""The usual preprocessing of published image models, as one value with its text.

In: uint8 RGB of any size. Out: crops of one size on the host, normalised on the device.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from copymit.embedding.resizing import Resample, crop_centre, resize_short_side

Statistics = tuple[float, float, float]


class CropPreset(NamedTuple):
    """Resizes the short side, cuts out the centre, and normalises the channels.

    Attributes:
      short_side: in pixels, at least `size`.
      size: height and width of the crop in pixels.
      mean, std: of the channels of images in [0, 1].
    """

    short_side: int
    size: int
    resample: Resample
    mean: Statistics
    std: Statistics

    @property
    def text(self) -> str:
        """The preset in words."""
        mean, std = (", ".join(f"{v:g}" for v in x) for x in (self.mean, self.std))
        return (
            f"short side to {self.short_side} px (Pillow, {self.resample.name.lower()}), "
            f"centre crop of {self.size} px as torchvision's, x / 255, mean ({mean}), "
            f"std ({std})"
        )

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Resizes and crops; h = w = `size`."""
        resized = resize_short_side(image, self.short_side, self.resample)
        return crop_centre(resized, self.size)

    def normalise(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Scales 0 .. 255 to [0, 1] and normalises the channels."""
        mean, std = (np.array(x, np.float32) for x in (self.mean, self.std))
        return (images.astype(jnp.float32) / 255 - mean) / std
