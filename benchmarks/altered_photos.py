"""Photos and altered copies of some of them, embedded once and kept in a folder.

Archives of photos enter; features and names leave.
"""

import functools
import tarfile
from collections.abc import Callable
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

# What copies look like; photo i of the altered ones is altered by i modulo 7.
ALTERED_BY = (
    "crop to 80 %",
    "JPEG quality 20",
    "to 48 px and back",
    "noise, 25 levels",
    "brightness x 1.6",
    "perspective",
    "rotation by 5 degrees",
)
_VERSIONS = 2
_BLOCK = 250  # photos a file
_BATCH = 25


class Photos(NamedTuple):
    """Photos in an order drawn once, and behind them altered versions of the first.

    Attributes:
      names: in their archive.
      rows: features, of length one, or pixels: of all photos, then of the altered ones
        in one version, then in another.
    """

    names: list[str]
    rows: np.ndarray

    @property
    def num_altered(self) -> int:
        """How many photos have altered versions."""
        return (len(self.rows) - len(self.names)) // _VERSIONS

    def altered(self, photos: np.ndarray, version: int) -> np.ndarray:
        """Lists the rows of a version of photos."""
        return len(self.names) + version * self.num_altered + photos

    def name(self, row: int) -> str:
        """Is the photo of a row, in whatever version."""
        count = len(self.names)
        return self.names[row if row < count else (row - count) % self.num_altered]


def load_photos(
    archive: str, embedder: str, cache: Path, count: int, num_altered: int
) -> Photos:
    """Embeds photos of an archive, but for what an earlier call kept."""
    network = functools.cache(make_embedder)  # once, and only where a block is missing

    def embed(images: np.ndarray) -> np.ndarray:
        return unit_rows(embed_arrays(network(embedder), images, _BATCH))

    return _load(archive, embedder, embed, cache, count, num_altered)


def load_pixels(
    archive: str, side: int, cache: Path, count: int, num_altered: int
) -> Photos:
    """Does the same with the pixels themselves, of photos resized to a side."""

    def shrink(images: np.ndarray) -> np.ndarray:
        return np.stack(
            [resize_and_crop(Image.fromarray(image), side) for image in images]
        )

    return _load(archive, f"{side}px", shrink, cache, count, num_altered)


def _names(archive: str) -> list[str]:
    suffixes = (".jpg", ".jpeg")
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if n.lower().endswith(suffixes))
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))]


def _load(
    archive: str,
    what: str,
    compute: Callable[[np.ndarray], np.ndarray],
    cache: Path,
    count: int,
    num_altered: int,
) -> Photos:
    """Computes something of all photos, and of the altered ones, block by block."""
    names, parts = _names(archive), []
    for kind, total in (("photos", count), ("altered", num_altered)):
        blocks = []
        for start in range(0, total, _BLOCK):
            path = cache / f"{Path(archive).stem}-{what}-{kind}-{start:05d}.npz"
            if not path.exists():
                some = names[start : start + _BLOCK]
                versions = _read_block(archive, some, start, altered=kind == "altered")
                made = [compute(np.stack(images)) for images in versions]
                cache.mkdir(parents=True, exist_ok=True)
                np.savez(path, unit=made[0] if len(made) == 1 else np.stack(made, 1))
                print(path.name, flush=True)
            with np.load(path, allow_pickle=False) as kept:
                blocks.append(kept["unit"])
        parts.append(np.concatenate(blocks)[:total])
    photos, altered = parts
    return Photos(names[:count], np.concatenate([photos, *altered.swapaxes(0, 1)]))


def alter(pixels: np.ndarray, transform: str, seed: int) -> np.ndarray:
    """Alters one photo; none of `ALTERED_BY` needs another."""
    image, rng = Image.fromarray(pixels), np.random.default_rng(seed)
    return np.asarray(TRANSFORMS[transform](image, image, rng).convert("RGB"))


def _read_block(
    archive: str, names: list[str], start: int, *, altered: bool
) -> list[list[np.ndarray]]:
    """Reads photos, or makes both altered versions of each."""
    with tarfile.open(archive) as tar:
        data = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]

    def read(pair: tuple[bytes, str]) -> np.ndarray:
        return resize_and_crop(decode_image(*pair), SIZE_PX)

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, zip(data, names, strict=True)))
    if not altered:
        return [images]
    kinds = len(ALTERED_BY)
    return [
        [
            alter(p, ALTERED_BY[(start + i + 3 * v) % kinds], i)
            for i, p in enumerate(images)
        ]
        for v in range(_VERSIONS)
    ]
