"""From encoded image files, which may be hostile, to RGB pixels.

In: the bytes of an image file of any common format. Out: a PIL image in mode RGB, a
square uint8 array of it, or one clear `ImageError` that names the file.
"""

import contextlib
import functools
import importlib
import io
import os
import struct
import warnings
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 2**26
# Pillow picks the decoder by content, so without this list a file called x.jpg could
# reach any of its decoders, among them one that runs Ghostscript. TGA and PCX have no
# sign to know them by. The last two need a plug-in, pillow-heif and pillow-jxl-plugin.
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"),
    *("QOI", "PSD", "HEIF", "JXL"),
)
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".ico", ".qoi", ".psd", ".heic", ".heif", ".jxl"),
)
_NO_IMAGE_SUFFIXES = (
    *(
        ".txt",
        ".caption",
        ".captions",
        ".text",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".cls",
    ),
    *(".parquet", ".arrow", ".tar", ".zip", ".npz", ".npy", ".md", ".html", ".mp4"),
)
_SIZE_IN_HEADER = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF")
HEAD_BYTES = 32  # enough to tell a format
_PLUGIN_FORMATS = {
    b"ftypheic": "HEIC: pip install pillow-heif",
    b"ftypheix": "HEIC: pip install pillow-heif",
    b"ftypmif1": "HEIF: pip install pillow-heif",
    b"ftypavif": "AVIF, and this Pillow was built without: pip install pillow again",
    b"JXL ": "JPEG XL: pip install pillow-jxl-plugin",
    b"version https://": "a pointer of git-lfs and not the file: run git lfs pull",
}
# Chunks of a PNG that hold no pixels; Pillow refuses a file whose are large.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
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
      ImageError: if the file is none of the formats, corrupt, truncated or too large, or
        has pixels whose range is not known.
    """
    try:
        return _decode(data, name, max_pixels, least_side)
    except ImageError:
        lean = _without_texts(data)
        if lean is None:
            raise
        return _decode(lean, name, max_pixels, least_side)


def is_image_file(name: str, read_head: Callable[[], bytes]) -> bool:
    """Tells whether a file is an image: by its content, where its suffix leaves it open.

    Args:
      read_head: returns its first `HEAD_BYTES` bytes.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES or suffix in _NO_IMAGE_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    head = read_head()
    openers = (Image.OPEN[name] for name in _formats())
    return any(accept is not None and accept(head) for _, accept in openers) or (
        _plugin_for(head) is not None
    )


def _decode(
    data: bytes, name: str, max_pixels: int, least_side: int | None
) -> Image.Image:
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
    """Reads (width, height) of what `decode_image` gives.

    Pixels are decoded only of rarer formats, which may turn or choose an image then.

    Raises:
      ImageError: if the header is none of the formats, corrupt or says too many pixels.
    """
    try:
        image = _open(file, name, max_pixels)
    except ImageError:
        file.seek(0)
        lean = _without_texts(file.read())
        if lean is None:
            raise
        file = io.BytesIO(lean)
        image = _open(file, name, max_pixels)
    if image.format not in _SIZE_IN_HEADER:
        file.seek(0)
        return decode_image(file.read(), name, max_pixels).size
    width, height = image.size
    if width == height or _orientation(image, file) not in _TURNED:
        return width, height
    return height, width


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns those of the formats that this installation decodes."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _plugin_for(head: bytes) -> str | None:
    signs = (what for sign, what in _PLUGIN_FORMATS.items() if sign in head[:20])
    return next(signs, None)


def _without_texts(data: bytes) -> bytes | None:
    """Returns a PNG without texts and profile; None if it has none, or is no PNG."""
    if not data.startswith(_PNG_SIGNATURE):
        return None
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    view = memoryview(data)
    while start < len(data):
        stop = start + 12 + int.from_bytes(view[start : start + 4])
        if view[start + 4 : start + 8] not in _PNG_TEXTS:
            kept.append(view[start:stop])  # type: ignore[arg-type]
        start = stop
    lean = b"".join(kept)
    return lean if len(lean) < len(data) else None


def resize_and_crop(
    image: Image.Image, size: int, place: float = 0.5
) -> UInt8[np.ndarray, "size size 3"]:
    """Resizes the short side to `size` (bilinear, antialiased) and crops the long one.

    An RGB image that already has that size is returned as it is.

    Args:
      place: of the crop, 0 at the left or top, 0.5 in the centre, 1 at the other end.
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
    image = _crop(image, min(image.width, longest), min(image.height, longest))
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(_crop(image, size, size, place))


def decode_resized(
    data: bytes, name: str, size: int, place: float = 0.5
) -> UInt8[np.ndarray, "size size 3"]:
    """Is `resize_and_crop` of a file, with less of a large JPEG decoded.

    At least 1.5 times the final size is decoded, which keeps the mean difference to the
    full decoding within one of 255 levels.

    Raises:
      ImageError, ValueError: as `decode_image` and `resize_and_crop`.
    """
    least_side = -(-_LEAST_DECODED * size // 2)
    image = decode_image(data, name, least_side=least_side)
    return resize_and_crop(image, size, place)


def _open(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Reads the header of an image."""
    try:
        image = Image.open(file, formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, _too_large("far", max_pixels)) from error
    except Image.UnidentifiedImageError as error:
        file.seek(0)
        plugin = _plugin_for(file.read(HEAD_BYTES))
        raise ImageError(
            name,
            f"is {plugin}"
            if plugin
            else "is not a readable JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, ... file",
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
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("it has 32 bits a pixel: save it with 8 or 16")
        values = values >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range: save it with 8 bits")
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


def _crop(
    image: Image.Image, width: int, height: int, place: float = 0.5
) -> Image.Image:
    left = round((image.width - width) * place)
    top = round((image.height - height) * place)
    return image.crop((left, top, left + width, top + height))
