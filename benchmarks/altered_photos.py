"""Photos and altered copies of some of them, embedded once and kept in a folder.

Archives of photos enter; features, small pixels and names leave.
"""

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.planted_copies import SIZE_PX, TRANSFORMS
from copymit.data.images import decode_image, resize_and_crop
from copymit.embedding.embed import embed_arrays
from copymit.embedding.embedder import Embedder
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
SMALL_PX = 64
_BLOCK = 250  # photos a file
_BATCH = 25


class Photos(NamedTuple):
    """Photos in an order drawn once, the first of them altered, too.

    Attributes:
      names: in their archive.
      unit: features, of length one.
      small: pixels at 64 px.
      altered_unit, altered_small: the same of the first photos, each altered twice.
    """

    names: list[str]
    unit: np.ndarray
    small: np.ndarray
    altered_unit: np.ndarray
    altered_small: np.ndarray


def load_photos(
    archive: str, embedder: str, cache: Path, count: int, num_altered: int
) -> Photos:
    """Embeds photos of an archive, but for what an earlier call kept."""
    suffixes = (".jpg", ".jpeg")
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if n.lower().endswith(suffixes))
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    parts = []
    for altered, total in ((True, num_altered), (False, count)):
        network, blocks = None, []
        for start in range(0, total, _BLOCK):
            kind = "altered" if altered else "photos"
            path = cache / f"{Path(archive).stem}-{embedder}-{kind}-{start:05d}.npz"
            if not path.exists():
                network = network or make_embedder(embedder)
                some = names[start : start + _BLOCK]
                made = _embed_block(archive, some, start, network, altered)
                cache.mkdir(parents=True, exist_ok=True)
                np.savez(path, **made)
                print(path.name, flush=True)
            with np.load(path, allow_pickle=False) as kept:
                blocks.append((kept["unit"], kept["small"]))
        unit, small = (np.concatenate(side) for side in zip(*blocks, strict=True))
        parts += [unit[:total], small[:total]]
    return Photos(names[:count], *parts[2:], *parts[:2])


def alter(pixels: np.ndarray, transform: str, seed: int) -> np.ndarray:
    """Alters one photo; none of `ALTERED_BY` needs another."""
    image, rng = Image.fromarray(pixels), np.random.default_rng(seed)
    return np.asarray(TRANSFORMS[transform](image, image, rng).convert("RGB"))


def _embed_block(
    archive: str, names: list[str], start: int, network: Embedder, altered: bool
) -> dict[str, np.ndarray]:
    with tarfile.open(archive) as tar:
        data = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]

    def read(pair: tuple[bytes, str]) -> np.ndarray:
        return resize_and_crop(decode_image(*pair), SIZE_PX)

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, zip(data, names, strict=True)))
    versions = [images]
    if altered:
        kinds = len(ALTERED_BY)
        versions = [
            [
                alter(p, ALTERED_BY[(start + i + 3 * v) % kinds], i)
                for i, p in enumerate(images)
            ]
            for v in range(2)
        ]
    unit = [
        unit_rows(embed_arrays(network, np.stack(version), _BATCH))
        for version in versions
    ]
    small = [
        np.stack([resize_and_crop(Image.fromarray(i), SMALL_PX) for i in version])
        for version in versions
    ]
    if not altered:
        return {"unit": unit[0], "small": small[0]}
    return {"unit": np.stack(unit, 1), "small": np.stack(small, 1)}
