"""Pictures in the page: uint8 images in, small `data:` addresses out."""

import base64
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Encodings in the order in which they are tried until an image fits its bytes: share of
# the longest side that is allowed, WebP quality.
_ENCODINGS = [(1.0, 88), (1.0, 75), (0.875, 60), (0.75, 40), (0.5, 30)]
_PIXELATED_PX = 128  # images up to here may be kept exactly, and enlarged as squares


class Picture(NamedTuple):
    """An encoded image: `data:` address, size in pixels, whether to enlarge squarely."""

    address: str
    width: int
    height: int
    pixelated: bool


class Limit(NamedTuple):
    """How large one picture may be: its longest side in pixels, and its bytes."""

    side_px: int
    max_bytes: int


class Detail(NamedTuple):
    """Limits of the pictures that matter, and of the small ones beside them."""

    large: Limit
    small: Limit


# From the finest; a page that would be too large takes the next.
DETAILS = (
    Detail(Limit(256, 24_576), Limit(128, 6_144)),
    Detail(Limit(160, 8_192), Limit(80, 3_072)),
    Detail(Limit(96, 3_072), Limit(64, 2_048)),
)


def picture_maker(
    read: Callable[[str], np.ndarray], limit: Limit
) -> Callable[[str], Picture]:
    """Makes a function id -> `Picture` that reads and encodes every image once."""
    made: dict[str, Picture] = {}

    def make(image_id: str) -> Picture:
        if image_id not in made:
            made[image_id] = encode_picture(read(image_id), image_id, limit)
        return made[image_id]

    return make


def encode_picture(
    image: UInt8[np.ndarray, "H W 3"], name: str, limit: Limit = DETAILS[0].large
) -> Picture:
    """Encodes an image as a `data:` address within the limit, or close above it.

    Raises:
      ValueError: if it is not an image of uint8 RGB.
    """
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        raise ValueError(
            f"image {name!r} is {image.dtype} of shape {image.shape}; give uint8 of shape "
            "(height, width, 3)"
        )
    full = Image.fromarray(image)
    if max(full.size) <= min(_PIXELATED_PX, limit.side_px):
        data = _webp(full, lossless=True)
        if len(data) <= limit.max_bytes:
            return Picture(_address(data), *full.size, True)
    for share, quality in _ENCODINGS:
        side = round(share * limit.side_px)
        small = full.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _webp(small, quality=quality)
        if len(data) <= limit.max_bytes:
            break
    return Picture(_address(data), *small.size, max(full.size) <= _PIXELATED_PX)


def _webp(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", method=4, **options)
    return buffer.getvalue()


def _address(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
