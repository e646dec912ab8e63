"""Folders of small images, as the tests of sources need them."""

import io
import json
from pathlib import Path

from PIL import Image


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(level))
    return folder


def write_captions(path: Path, captions: object) -> Path:
    path.write_text(json.dumps(captions))
    return path
