"""A folder of pictures with duplicates of every kind, and where they are."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# What belongs together; all other pictures and captions are different.
EXACT_FILE = {"00.png", "exact_file.png"}
EXACT_PIXELS = {"01.png", "exact_pixels.bmp"}
NEAR = {"02.png", "near_jpeg.jpg", "near_crop.png", "near_resized.png"}
BOTH = {"03.png", "both.jpg"}
CAPTION_ONLY = {"04.png", "05.png"}


def draw_picture(seed: int, size: int = 64) -> Image.Image:
    """Draws a few coloured shapes that no other seed has."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = rng.integers(0, size - 16, 2).tolist()
        width, height = rng.integers(12, size // 2, 2).tolist()
        color = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse((left, top, left + width, top + height), fill=color)
    return image


def caption_of(number: int) -> str:
    """Writes a caption that shares no long word with any other."""
    rng = np.random.default_rng(1000 + number)
    letters = [chr(97 + i) for i in rng.integers(0, 26, 40)]
    return " ".join("".join(letters[i : i + 8]) for i in range(0, 40, 8))


def plant(folder: Path, count: int = 60) -> tuple[Path, Path]:
    """Writes pictures and captions; returns the folder and the captions file."""
    images = folder / "images"
    images.mkdir(parents=True)
    captions = {}
    for i in range(count):
        draw_picture(i).save(images / f"{i:02d}.png")
        captions[f"{i:02d}.png"] = [caption_of(i)]
    (images / "exact_file.png").write_bytes((images / "00.png").read_bytes())
    draw_picture(1).save(images / "exact_pixels.bmp")
    picture = draw_picture(2)
    picture.save(images / "near_jpeg.jpg", quality=80)
    picture.crop((1, 1, 63, 63)).save(images / "near_crop.png")
    picture.resize((96, 96)).save(images / "near_resized.png")
    draw_picture(3).save(images / "both.jpg", quality=80)
    captions["05.png"] = [caption_of(4).upper().replace(" ", ",  ") + "!"]
    captions["both.jpg"] = [caption_of(3).title() + "."]
    for i, path in enumerate(sorted(images.iterdir())):
        captions.setdefault(path.name, [caption_of(500 + i)])
    file = folder / "captions.json"
    file.write_text(json.dumps(captions))
    return images, file


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
