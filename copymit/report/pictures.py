"""Pictures of pages: uint8 images in, small `data:` addresses or files of pairs out."""

import base64
import io
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Encodings in the order in which they are tried until an image fits its bytes: share of
# the longest side that is allowed, WebP quality.
_ENCODINGS = [(1.0, 88), (1.0, 75), (0.875, 60), (0.75, 40), (0.5, 30)]
_GAP_PX = 8  # between the two of a pair
_MAX_NAME = 60
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


def encode_pair(
    first: UInt8[np.ndarray, "H W 3"],
    second: UInt8[np.ndarray, "H V 3"],
    side_px: int = 0,
) -> bytes:
    """Encodes two images of one height side by side.

    Args:
      side_px: the longest side of each in a small JPEG; 0 = the pixels as they are, PNG.
    """
    file = io.BytesIO()
    if not side_px:
        _join(first, second).save(file, "PNG")
        return file.getvalue()
    images = [Image.fromarray(image) for image in (first, second)]
    for image in images:
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    # Colours as fine as light: of small pictures every pixel is seen.
    _join(*map(np.asarray, images)).save(file, "JPEG", quality=85, subsampling=0)
    return file.getvalue()


def _join(first: np.ndarray, second: np.ndarray) -> Image.Image:
    gap = np.full((len(first), _GAP_PX, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([first, gap, second], 1))


def plain_name(name: str) -> str:
    """Keeps the letters and digits of a name from outside, so that it can name a file."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[-_MAX_NAME:].strip("-") or "nameless"
