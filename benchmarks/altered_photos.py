"""Photos and altered copies of some of them, embedded once and kept in a folder.

Archives of photos enter; features, small pixels and names leave.
"""

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.planted_copies import SIZE_PX, TRANSFORMS
from copymit.data.images import decode_image, resize_and_crop
from copymit.embedding.embed import embed_arrays
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import unit_rows

# What copies look like: each of them makes a seventh of the altered photos.
ALTERED_BY = (
    "crop to 80 %",
    "JPEG quality 20",
    "to 48 px and back",
    "noise, 25 levels",
    "brightness x 1.6",
    "perspective",
    "rotation by 5 degrees",
)
SMALL_PX = 64
_BLOCK = 256
_BATCH = 32


class Photos(NamedTuple):
    """Photos, and two alterations of some.

    Attributes:
      names: of the photos in their archive.
      unit: their features, of length one.
      small: their pixels at 64 px.
      pool: rows of those that are altered.
      altered_unit, altered_small: of each of the pool by two of the transforms.
    """

    names: list[str]
    unit: np.ndarray
    small: np.ndarray
    pool: np.ndarray
    altered_unit: np.ndarray
    altered_small: np.ndarray


def load_photos(
    archive: str, embedder: str, cache: Path, num_altered: int
) -> Photos:
    """Embeds the photos of an archive, or reads what an earlier call kept."""
    path = cache / f"{Path(archive).stem}-{embedder}-{num_altered}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, **_embed_photos(archive, embedder, num_altered))
    with np.load(path, allow_pickle=False) as kept:
        return Photos(kept["names"].tolist(), *(kept[k] for k in Photos._fields[1:]))


def _embed_photos(archive: str, embedder: str, num_altered: int) -> dict:
    network = make_embedder(embedder)

    def look(images: np.ndarray) -> np.ndarray:
        return unit_rows(embed_arrays(network, images, _BATCH))

    names, unit, small, altered = [], [], [], []
    for block_names, block in _blocks(archive):
        names += block_names
        unit.append(look(block))
        small.append(_small(block))
        altered.append(block)
        print(f"{embedder}: {len(names)} photos", flush=True)
    pixels = np.concatenate(altered)
    rng = np.random.default_rng(0)
    pool = np.sort(rng.choice(len(names), num_altered, replace=False))
    features, thumbnails = [], []
    for version in range(2):
        images = np.stack(
            [
                alter(pixels[row], ALTERED_BY[(i + 3 * version) % len(ALTERED_BY)], rng)
                for i, row in enumerate(pool)
            ]
        )
        features.append(look(images))
        thumbnails.append(_small(images))
    return {
        "names": np.array(names),
        "unit": np.concatenate(unit),
        "small": np.concatenate(small),
        "pool": pool,
        "altered_unit": np.stack(features, 1),
        "altered_small": np.stack(thumbnails, 1),
    }


def alter(
    pixels: np.ndarray, transform: str, rng: np.random.Generator
) -> np.ndarray:
    """Alters one photo; none of `ALTERED_BY` needs another."""
    image = Image.fromarray(pixels)
    return np.asarray(TRANSFORMS[transform](image, image, rng).convert("RGB"))


def _small(images: np.ndarray) -> np.ndarray:
    return np.stack(
        [resize_and_crop(Image.fromarray(image), SMALL_PX) for image in images]
    )


def _blocks(archive: str) -> Iterator[tuple[list[str], np.ndarray]]:
    with tarfile.open(archive) as tar, ThreadPoolExecutor() as pool:
        suffixes = (".jpg", ".jpeg")
        names = sorted(n for n in tar.getnames() if n.lower().endswith(suffixes))
        for start in range(0, len(names), _BLOCK):
            some = names[start : start + _BLOCK]
            data = [io.BytesIO(tar.extractfile(name).read()) for name in some]  # type: ignore[union-attr]
            pairs = zip(data, some, strict=True)
            decoded = pool.map(lambda p: decode_image(p[0].getvalue(), p[1]), pairs)
            yield some, np.stack([resize_and_crop(i, SIZE_PX) for i in decoded])
