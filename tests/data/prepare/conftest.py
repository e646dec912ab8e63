"""Small images of every kind, and folders of them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def noise():
    def noise(seed, size=16, kind="PNG"):
        pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
        return encode(Image.fromarray(pixels), kind)

    return noise


@pytest.fixture
def folder(tmp_path, noise):
    """Twelve images in two classes."""
    for i in range(12):
        path = tmp_path / "images" / ("cats" if i % 2 else "dogs") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(i))
    return tmp_path / "images"


def resized_header(png, width, height):
    """A PNG whose header alone says another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.fixture
def odd_images(noise):
    """Images as the world has them, by name."""
    rgb = Image.new("RGB", (6, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (6, 4), i) for i in range(3)]
    whole = noise(0, 32, "JPEG")
    return {
        "one_pixel": encode(Image.new("RGB", (1, 1), "red")),
        "huge": resized_header(noise(0), 30_000, 30_000),
        "cmyk": encode(Image.new("CMYK", (6, 4)), "JPEG"),
        "grey": encode(Image.new("L", (6, 4)), "JPEG"),
        "sixteen_bit": encode(Image.new("I;16", (6, 4), 40_000)),
        "animated": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rgba": encode(Image.new("RGBA", (6, 4), (255, 0, 0, 0))),
        "rotated": encode(rgb, "JPEG", exif=exif.tobytes()),
        "cut_off": whole[: len(whole) // 2],
        "text": b"<html>not found</html>",
        "empty": b"",
    }
