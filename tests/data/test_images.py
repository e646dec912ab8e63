import io
import pickle
import struct
import tarfile
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

from copymit.data.images import (
    ImageError,
    _formats,
    decode_image,
    decode_resized,
    read_size,
    resize_and_crop,
)

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(
        generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def huge_png(width: int, height: int) -> bytes:
    """A valid header that promises more pixels than the file holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP"])
def test_a_lossless_file_decodes_to_the_same_pixels(image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = noise(9, 7)
    decoded = decode_image(encode(image, image_format, **options), "x")
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("image_format", ["JPEG", "GIF"])
def test_a_lossy_file_decodes_to_its_plain_colour(image_format):
    red = Image.new("RGB", (16, 16), (200, 10, 20))
    pixels = np.asarray(decode_image(encode(red, image_format), "x")).astype(int)
    # JPEG rounds a plain colour by a few levels.
    assert np.abs(pixels - [200, 10, 20]).max() <= 3


@pytest.mark.parametrize(
    ("mode", "colour", "image_format", "expected"),
    [
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), "PNG", (255, 0, 0)),
        ("RGBA", (0, 0, 0, 51), "PNG", (204, 204, 204)),
        ("I;16", 0x4DFF, "PNG", (0x4D, 0x4D, 0x4D)),
        ("I;16", 0xFFFF, "PNG", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, colour, image_format, expected):
    image = Image.new(mode, (8, 8), colour)
    decoded = decode_image(encode(image, image_format, quality=100), "x")
    assert (decoded.mode, decoded.size) == ("RGB", (8, 8))
    pixels = np.asarray(decoded).astype(int)
    # One level for the rounding of alpha, two for JPEG at its best quality.
    assert np.abs(pixels - expected).max() <= 2


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 2)
    pixels = np.asarray(decode_image(encode(image, "GIF", transparency=1), "x"))
    assert tuple(pixels[0, 0]) == (40, 50, 60)
    assert tuple(pixels[1, 1]) == (255, 255, 255)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_an_animation_gives_its_first_frame(image_format):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encode(first, image_format, save_all=True, append_images=[second])
    red, _, blue = np.asarray(decode_image(data, "x"))[4, 4]
    assert red > 240
    assert blue < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(6, 4), exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    decoded = decode_image(data, "x")
    assert decoded.size == ((6, 4) if orientation < 5 else (4, 6))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(expected))


def with_late_exif(data: bytes, orientation: int) -> bytes:
    """Puts the tag behind the pixels of a PNG, where it may be, too."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return data[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]


_TAGGED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def turned_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 8
    image, tag = noise(6, 4), exif.tobytes()
    files = {kind: encode(image, kind, exif=tag) for kind in _TAGGED}
    files["PNG, late"] = with_late_exif(encode(image), 6)
    files["PNG, upright, late"] = with_late_exif(encode(image), 3)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="7"/>')
    files["PNG, XMP"] = encode(image, pnginfo=text)
    files["broken"] = encode(image, "JPEG", exif=b"Exif\0\0garbage")
    for kind in ("BMP", "GIF", "JPEG", "PNG", "WEBP"):
        files[f"{kind}, plain"] = encode(image, kind)
    both = {"save_all": True, "append_images": [noise(6, 4, 1)]}
    files["PNG, animated"] = encode(image, **both)
    return files


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(("name", "data"), turned_files().items())
def test_the_size_in_the_header_is_that_of_the_decoded_image(name, data):
    size = read_size(io.BytesIO(data), name)
    assert size == decode_image(data, name).size
    plain = any(word in name for word in ("plain", "upright", "broken", "animated"))
    assert size == ((6, 4) if plain else (4, 6))


def test_the_size_of_a_png_is_read_without_its_pixels(monkeypatch):
    # Of the pixels only the first bytes are there, so that they cannot be decoded.
    whole = encode(noise(60, 40))
    assert read_size(io.BytesIO(whole[:200]), "cut") == (60, 40)
    monkeypatch.setattr(ImageFile.ImageFile, "load", pytest.fail)
    assert read_size(io.BytesIO(whole), "whole") == (60, 40)


def test_a_header_is_checked_as_before_decoding():
    with pytest.raises(ImageError, match="'huge' is too large: 9000 x 9000,"):
        read_size(io.BytesIO(huge_png(9_000, 9_000)), "huge")
    with pytest.raises(ImageError, match="'x' is not a readable JPEG"):
        read_size(io.BytesIO(b"hello"), "x")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_an_image_with_broken_exif_is_read_as_stored(exif):
    image = noise(6, 4)
    decoded = decode_image(encode(image, exif=exif), "x")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_named(data):
    with pytest.raises(ImageError, match=r"image 'cat/1\.jpg' is not a readable JPEG"):
        decode_image(data, "cat/1.jpg")


def test_other_formats_are_refused_whatever_the_file_is_called():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    for data in (encode(noise(8, 8), "SGI"), postscript):
        with pytest.raises(ImageError, match="not a readable JPEG, PNG, WebP, BMP"):
            decode_image(data, "x.jpg")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_image_is_named(image_format):
    data = encode(noise(64, 64), image_format)
    with pytest.raises(ImageError, match=r"image 'a\.x' .*(corrupt|not a readable)"):
        decode_image(data[: len(data) // 2], "a.x")


def test_a_damaged_png_is_named():
    data = bytearray(encode(noise(64, 64)))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match=r"image 'a\.png' is corrupt or truncated"):
        decode_image(bytes(data), "a.png")


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_raises_nothing_but_an_image_error(seed):
    generator = np.random.default_rng(seed)
    image_format = ("JPEG", "PNG", "WEBP", "BMP", "GIF")[seed % 5]
    data = np.frombuffer(encode(noise(24, 24), image_format), np.uint8).copy()
    places = generator.integers(0, min(len(data), 200), 8)
    data[places] = generator.integers(0, 256, 8)
    try:
        outcome = decode_image(data.tobytes(), "x", max_pixels=10**6).mode
    except ImageError as error:
        outcome = error.name
    assert outcome in ("RGB", "x")


def test_too_many_pixels_are_refused_from_the_header():
    with pytest.raises(ImageError, match=r"'b\.png' is too large: 9000 x 9000, more"):
        decode_image(huge_png(9_000, 9_000), "b.png")
    # At the bound itself the header passes and the missing pixels are noticed.
    with pytest.raises(ImageError, match="corrupt or truncated"):
        decode_image(huge_png(10, 10), "b.png", max_pixels=100)
    with pytest.raises(ImageError, match="too large: 10 x 11, more than 109 pixels"):
        decode_image(huge_png(10, 11), "b.png", max_pixels=109)


@pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000)])
@pytest.mark.parametrize("action", ["error", "default"])
def test_pillows_own_bomb_guards_become_image_errors(size, action):
    with warnings.catch_warnings(record=action == "default"):
        warnings.simplefilter(action)
        with pytest.raises(ImageError, match=r"image 'b\.png' is too large"):
            decode_image(huge_png(*size), "b.png")


def test_an_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is corrupt")))
    assert (error.name, error.reason) == ("a.png", "is corrupt")
    assert str(error) == "image 'a.png' is corrupt"


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (31, 57), (7, 5), (200, 30)])
def test_resize_and_crop_follows_the_recipe(size):
    image = noise(*size)
    scale = 16 / min(size)
    resized = image.resize(
        tuple(16 if s == min(size) else int(s * scale) for s in size),
        Image.Resampling.BILINEAR,
    )
    pixels = np.asarray(resized)
    top, left = (round((n - 16) / 2) for n in pixels.shape[:2])
    expected = pixels[top : top + 16, left : left + 16]
    cropped = resize_and_crop(image, 16)
    assert cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, expected)


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_a_crop_lies_where_it_is_placed_along_the_long_side(size):
    image = noise(*size)
    axis = 1 if size[0] > 16 else 0
    for place, first in ((0.0, 0), (0.25, 6), (0.5, 12), (1.0, 24)):
        expected = np.take(np.asarray(image), range(first, first + 16), axis)
        np.testing.assert_array_equal(resize_and_crop(image, 16, place), expected)


def test_resize_and_crop_keeps_an_image_of_that_size():
    image = noise(24, 24)
    np.testing.assert_array_equal(resize_and_crop(image, 24), np.asarray(image))


def test_shrinking_averages_instead_of_dropping_pixels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = resize_and_crop(Image.fromarray(stripes), 8).astype(int)
    # The border sees half a filter, hence not exactly 127.5.
    assert np.abs(pixels - 127.5).max() < 10


@pytest.mark.parametrize("size", [(2**20, 1), (1, 2**20)])
def test_an_extremely_long_image_is_cropped_without_blowing_up(size):
    image = Image.new("RGB", size, (1, 2, 3))
    assert (resize_and_crop(image, 256) == [1, 2, 3]).all()


def test_resize_and_crop_refuses_bad_arguments():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        resize_and_crop(noise(4, 4), 0)
    with pytest.raises(ValueError, match="RGB image, got mode 'L': decode it"):
        resize_and_crop(noise(4, 4).convert("L"), 4)


def test_real_photos_of_every_mode_decode():
    archive = SHARED_DATA / "imagenette2-224.tar"
    if not archive.is_file():
        pytest.skip("needs ../shared/data/imagenette2-224.tar")
    decoded = 0
    with tarfile.open(archive) as tar:
        for count, member in enumerate(m for m in tar if m.isfile()):
            if count % 40 == 0:
                image = decode_image(tar.extractfile(member).read(), member.name)
                decoded += image.mode == "RGB"
            if count >= 2_000:
                break
    assert decoded == 51


def test_a_large_jpeg_that_is_decoded_in_part_differs_by_less_than_a_level(shared_data):
    """The half-size decoding of a 224 px photo against the full one, both to 64 px."""
    with tarfile.open(shared_data / "imagenette2-224.tar") as tar:
        names = [n for n in tar.getnames() if "/val/" in n and n.endswith("JPEG")]
        files = [tar.extractfile(name).read() for name in sorted(names)[::10]]
    fast = np.stack([decode_resized(data, "photo", 64) for data in files])
    full = np.stack(
        [resize_and_crop(decode_image(data, "photo"), 64) for data in files]
    )
    difference = np.abs(fast.astype(int) - full)
    assert 0 < difference.mean() < 1
    assert abs((fast.astype(int) - full).mean()) < 0.05
    # A size of which there are not 1.5 times as many pixels is decoded in full.
    same = np.stack([decode_resized(data, "photo", 100) for data in files[:5]])
    whole = [resize_and_crop(decode_image(data, "photo"), 100) for data in files[:5]]
    np.testing.assert_array_equal(same, np.stack(whole))


def test_a_smooth_jpeg_that_is_decoded_in_part_differs_by_less_than_a_level(rng):
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    fast = decode_resized(buffer.getvalue(), "smooth", 64).astype(int)
    full = resize_and_crop(decode_image(buffer.getvalue(), "smooth"), 64)
    assert np.abs(fast - full).mean() < 1


def test_the_resize_is_torchs_antialiased_bilinear(rng):
    """torchvision's tensor transform is this call; files go through Pillow's twin."""
    pixels = rng.integers(0, 256, (150, 150, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(
        tensor, (64, 64), mode="bilinear", antialias=True, align_corners=False
    )
    found = resize_and_crop(Image.fromarray(pixels), 64).astype(np.float32)
    difference = np.abs(found - expected[0].permute(1, 2, 0).numpy())
    # Pillow rounds to whole levels after each of the two directions.
    assert difference.mean() < 0.5
    assert difference.max() <= 1.5


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_png_with_large_texts_and_profile_is_a_good_image(where):
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", checksum)
        )

    large = zlib.compress(bytes(2**26), 9)  # 64 MiB in 64 kB
    texts = chunk(b"zTXt", b"Comment\0\0" + large) + chunk(b"iCCP", b"p\0\0" + large)
    image = noise(8, 8)
    data = encode(image)
    cut = 33 if where == "before" else len(data) - 12
    data = data[:cut] + texts + data[cut:]
    tracemalloc.start()
    decoded = decode_image(data, "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))
    assert peak < 2**24


def test_modern_formats_and_sixteen_bits_are_decoded():
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    for kind in ("AVIF", "TIFF", "JPEG2000"):
        pixels = np.asarray(decode_image(encode(image, kind), "x"), np.int32)
        assert np.abs(pixels - np.asarray(image)).max() < 5
    deep = Image.new("I;16", (8, 8), 40_000)
    assert np.asarray(decode_image(encode(deep, "TIFF"), "x")).max() == 40_000 >> 8


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (4, 4), 0.5), "floats of unknown range"),
        (Image.new("I", (4, 4), 2**20), "32 bits a pixel"),
    ],
)
def test_pixels_of_unknown_range_are_refused(image, message):
    with pytest.raises(ImageError, match=message):
        decode_image(encode(image, "TIFF"), "x")


def test_a_photo_of_a_telephone_names_the_plug_in_it_needs():
    if "HEIF" in _formats():
        pytest.skip("the plug-in is installed")
    with pytest.raises(ImageError, match="is HEIC: pip install pillow-heif"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(40), "x.heic")
