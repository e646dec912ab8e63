"""How published protocols bring an image to the size that their network takes.

In and out: uint8 RGB on the host, resized with Pillow as torchvision does for files.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Resample = Image.Resampling


def resize_short_side(
    image: UInt8[np.ndarray, "H W 3"],
    size: int,
    resample: Image.Resampling = Resample.BILINEAR,
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes so that the shorter side has `size` pixels.

    Source: torchvision's `Resize(size)`, which rounds the longer side down.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    return resize_to(image, size * height // short, size * width // short, resample)


def resize_to(
    image: UInt8[np.ndarray, "H W 3"],
    height: int,
    width: int,
    resample: Image.Resampling = Resample.BILINEAR,
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes to the size given, whatever that does to the aspect ratio."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def crop_centre(
    image: UInt8[np.ndarray, "H W 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts the central square out of an image that is at least as large.

    Source: torchvision's `CenterCrop(size)`, which rounds half to even.
    """
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
