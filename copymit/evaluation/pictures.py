"""Pictures that devices made, to files: each process writes those that it holds."""

import io
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from copymit.storage import write_whole


def local_rows(images: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each image that this process holds, with its row; none twice."""
    seen = set()
    for shard in images.addressable_shards:
        start = shard.index[0].start or 0
        if start not in seen:
            seen.add(start)
            yield from enumerate(np.asarray(shard.data), start)


def write_png(
    path: epath.Path, image: np.ndarray, notes: PngInfo | None = None
) -> None:
    """Writes an 8-bit image, whole or not at all."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=notes)
    write_whole(path, file.getvalue())
