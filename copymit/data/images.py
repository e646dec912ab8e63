"""From encoded image files, which may be hostile, to RGB pixels.

In: the bytes of a JPEG, PNG, WebP, BMP or GIF file. Out: a PIL image in mode RGB, a
square uint8 array of it, or one clear `ImageError` that names the file.
"""

import io
import os
import struct
import warnings
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 2**26
# Pillow picks the decoder by content, so without this list a file called x.jpg could
# reach any of its decoders, among them one that runs Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)
# An image this many times longer than wide is cut before it is resized, or its long
# side could grow beyond all memory.
_MAX_ASPECT = 8
# Halves of the final size that a JPEG is decoded at, at least.
_LEAST_DECODED = 3

# Pillow's own bound lies above ours and only warns; catching that warning for one call
# is not safe among threads, so for this process it is an error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """An image file that cannot be used: `name` says which, `reason` says why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.name!r} {self.reason}"


def decode_image(
    data: bytes,
    name: str,
    max_pixels: int = MAX_PIXELS,
    least_side: int | None = None,
) -> Image.Image:
    """Decodes one image file to RGB, upright, on white, the first frame of many.

    Grey, CMYK, palette and 16-bit images become 8-bit RGB, transparency is composited
    on white, and the EXIF orientation is applied.

    Args:
      name: what errors call the file.
      max_pixels: checked in the header, before anything is decoded.
      least_side: a JPEG may come out at a half, a quarter or an eighth of its size while
        no side falls below this, which costs half the time or less; None is full size.
    Raises:
      ImageError: if the file is none of the formats, corrupt, truncated or too large.
    """
    image = _open(io.BytesIO(data), name, max_pixels)
    try:
        if least_side is not None:
            image.draft(None, (least_side, least_side))  # JPEG files alone have one
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:  # As above.
        raise ImageError(name, f"is corrupt or truncated ({error})") from error
    orientation = _orientation(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def read_size(
    file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Reads (width, height) of what `decode_image` gives, without decoding pixels.

    Raises:
      ImageError: if the header is none of the formats, corrupt or says too many pixels.
    """
    image = _open(file, name, max_pixels)
    width, height = image.size
    if width == height or _orientation(image, file) not in _TURNED:
        return width, height
    return height, width


def resize_and_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the short side to `size` (bilinear, antialiased) and crops the centre.

    An RGB image that already has that size is returned as it is.

    Raises:
      ValueError: if `size` is not positive or the image is not RGB.
    Source: torchvision's Resize and CenterCrop, as in DCR datasets.py; differs on
      purpose for images more than 8 times longer than wide, whose ends are cut first.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if image.mode != "RGB":
        raise ValueError(
            f"resize_and_crop needs an RGB image, got mode {image.mode!r}: "
            "decode it with decode_image"
        )
    longest = _MAX_ASPECT * min(image.size)
    image = _centre_crop(image, min(image.width, longest), min(image.height, longest))
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(_centre_crop(image, size, size))


def decode_resized(
    data: bytes, name: str, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Is `resize_and_crop` of a file, with less of a large JPEG decoded.

    At least 1.5 times the final size is decoded, which keeps the mean difference to the
    full decoding within one of 255 levels.

    Raises:
      ImageError, ValueError: as `decode_image` and `resize_and_crop`.
    """
    least_side = -(-_LEAST_DECODED * size // 2)
    return resize_and_crop(decode_image(data, name, least_side=least_side), size)


def _open(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Reads the header of an image."""
    try:
        image = Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, _too_large("far", max_pixels)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            name, "is not a readable JPEG, PNG, WebP, BMP or GIF file"
        ) from error
    except Exception as error:  # Decoders raise anything on hostile bytes.
        raise ImageError(name, f"has a corrupt header ({error})") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(name, _too_large(f"{width} x {height},", max_pixels))
    return image


def _too_large(size: str, max_pixels: int) -> str:
    return f"is too large: {size} more than {max_pixels} pixels; shrink or remove it"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        values = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    foreground = image.convert("RGBA")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, foreground).convert("RGB")


def _orientation(image: Image.Image, file: BinaryIO | None = None) -> object:
    """Reads the EXIF tag; without decoding pixels if the image's file is given."""
    # Most files have no EXIF, and to look for the tag costs as much as to resize; in
    # PNG and WebP it can hide elsewhere.
    if image.format == "JPEG" and "exif" not in image.info:
        return None
    try:
        if file is not None and image.format == "PNG" and _ends_in_pixels(file):
            # The format's own `getexif` decodes all pixels to look behind them.
            return Image.Image.getexif(image).get(_ORIENTATION_TAG)
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # A photo with unreadable EXIF is still a photo.
        return None


def _ends_in_pixels(file: BinaryIO) -> bool:
    """Says whether nothing follows the pixels of a PNG but its end."""
    before = file.tell()
    file.seek(8)
    seen = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if seen and kind != b"IDAT":
            break
        seen = kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(before)
    return head[4:] == b"IEND"


def _centre_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
