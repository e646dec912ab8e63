"""How well each embedder finds planted copies of photos, one transform at a time.

    python -m benchmarks.planted_copies PHOTOS.tar docs/planted_copies.md

PHOTOS.tar holds `.../train/CLASS/*.JPEG`, as Imagenette does. The references are all of
its training photos; 100 of them are altered by each of 20 transforms. Photos of `val`,
which are copies of nothing, are searched for beside them: average precision counts how
far their similarities mix with those of the copies. Prints the table and writes it.
"""

import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from copymit.data.images import decode_image, resize_and_crop
from copymit.embedding.embed import embed_arrays
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import unit_rows
from copymit.embedding.tiles import list_tiles
from copymit.search.exact import search_exact

SIZE_PX = 224
NUM_COPIES = 100
NUM_OTHERS = 400
EMBEDDERS = ("efficientnet_lite0", "pixels")
TILED = ("efficientnet_lite0", 2)
Transform = Callable[[Image.Image, Image.Image, np.random.Generator], Image.Image]


def _crop(image, share):
    side = round(SIZE_PX * share)
    left = (SIZE_PX - side) // 3
    box = (left, left, left + side, left + side)
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC)


def _jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _small(image, side):
    return image.resize((side, side), Image.Resampling.BILINEAR).resize(image.size)


def _noise(image, rng):
    noisy = np.asarray(image) + rng.normal(0, 25, (SIZE_PX, SIZE_PX, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shift_hue(image):
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point(lambda level: (level + 64) % 256)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _caption(image):
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 180, SIZE_PX, SIZE_PX), fill=(255, 255, 255))
    draw.text((12, 192), "WHEN THE MODEL REMEMBERS", fill=(0, 0, 0))
    return image


def _pad(image):
    small = image.resize((150, 150), Image.Resampling.BICUBIC)
    framed = Image.new("RGB", image.size, (240, 240, 240))
    framed.paste(small, (37, 37))
    return framed


def _collage(image, other):
    page = other.copy()
    page.paste(image.resize((112, 112), Image.Resampling.BICUBIC), (0, 0))
    return page


def _new_foreground(image, other):
    """A disc of another photo, 30 % of the area, before the old background."""
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).ellipse((43, 43, 181, 181), fill=255)
    return Image.composite(other, image, mask)


def _perspective(image):
    corners = (18, 10, 6, 214, 218, 200, 206, 20)  # where the corners come from
    return image.transform(
        image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC
    )


TRANSFORMS: dict[str, Transform] = {
    "none": lambda x, _, r: x,
    "crop to 80 %": lambda x, _, r: _crop(x, 0.8),
    "crop to 50 %": lambda x, _, r: _crop(x, 0.5),
    "flip": lambda x, _, r: ImageOps.mirror(x),
    "JPEG quality 20": lambda x, _, r: _jpeg(x, 20),
    "blur, 3 px": lambda x, _, r: x.filter(ImageFilter.GaussianBlur(3)),
    "to 48 px and back": lambda x, _, r: _small(x, 48),
    "noise, 25 levels": lambda x, _, r: _noise(x, r),
    "grey": lambda x, _, r: x.convert("L").convert("RGB"),
    "hue turned by 90 degrees": lambda x, _, r: _shift_hue(x),
    "brightness x 1.6": lambda x, _, r: ImageEnhance.Brightness(x).enhance(1.6),
    "contrast x 0.5": lambda x, _, r: ImageEnhance.Contrast(x).enhance(0.5),
    "negative": lambda x, _, r: ImageOps.invert(x),
    "caption over the lower fifth": lambda x, _, r: _caption(x),
    "frame, 45 % of the area left": lambda x, _, r: _pad(x),
    "rotation by 5 degrees": lambda x, _, r: x.rotate(5, Image.Resampling.BICUBIC),
    "rotation by 90 degrees": lambda x, _, r: x.transpose(Image.Transpose.ROTATE_90),
    "perspective": lambda x, _, r: _perspective(x),
    "quarter of a collage": lambda x, other, r: _collage(x, other),
    "new foreground": lambda x, other, r: _new_foreground(x, other),
}


def main(archive: str, page: str) -> None:
    """Measures and writes the table."""
    references = np.stack(list(read_photos(archive, "/train/")))
    others = np.stack(list(read_photos(archive, "/val/")))
    rng = np.random.default_rng(0)
    copied = rng.choice(len(references), NUM_COPIES, replace=False)
    strangers = others[rng.choice(len(others), NUM_OTHERS + NUM_COPIES, replace=False)]
    queries = make_queries(references[copied], strangers[NUM_OTHERS:])
    columns = {}
    for name in EMBEDDERS:
        columns[name] = measure(
            name, references, queries, copied, strangers[:NUM_OTHERS]
        )
    name, grid = TILED
    columns[f"{name}, best of {grid}x{grid} tiles"] = measure(
        name, references, queries, copied, strangers[:NUM_OTHERS], grid
    )
    text = write_page(columns, len(references))
    Path(page).write_text(text)
    print(text)


def read_photos(archive: str, part: str) -> Iterator[np.ndarray]:
    """Reads the photos of a part in the order of their names."""
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if part in n and n.endswith(".JPEG"))
        data = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(
            lambda pair: resize_and_crop(decode_image(*pair), SIZE_PX),
            zip(data, names, strict=True),
        )


def make_queries(photos: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Alters every photo by every transform."""
    queries = {}
    for name, transform in TRANSFORMS.items():
        rng = np.random.default_rng(1)
        pairs = [
            (Image.fromarray(a), Image.fromarray(b))
            for a, b in zip(photos, others, strict=True)
        ]
        altered = [np.asarray(transform(a, b, rng).convert("RGB")) for a, b in pairs]
        queries[name] = np.stack(altered)
    return queries


def measure(
    name: str,
    references: np.ndarray,
    queries: dict[str, np.ndarray],
    copied: np.ndarray,
    strangers: np.ndarray,
    grid: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Finds recall@1, average precision and mean similarity to the original."""
    embedder = make_embedder(name)
    started = time.perf_counter()
    parts = [tile.cut for tile in list_tiles(grid)] or [lambda image: image]

    def look(images: np.ndarray, cut) -> np.ndarray:
        return unit_rows(embed_arrays(embedder, np.stack([cut(i) for i in images]), 64))

    known = [look(references, cut) for cut in parts]
    results = {}
    base = [
        search_exact(look(strangers, c), k, 1)
        for c, k in zip(parts, known, strict=True)
    ]
    wrong = np.max([found.similarities[:, 0] for found in base], axis=0)
    for transform, images in queries.items():
        seen = [look(images, cut) for cut in parts]
        found = [search_exact(s, k, 1) for s, k in zip(seen, known, strict=True)]
        similarities = np.stack([f.similarities[:, 0] for f in found])
        best = similarities.argmax(axis=0)
        rows = np.arange(len(copied))
        hits = np.stack([f.indices[:, 0] for f in found])[best, rows] == copied
        own = [
            np.einsum("qd,qd->q", s, k[copied])
            for s, k in zip(seen, known, strict=True)
        ]
        results[transform] = (
            float(hits.mean()),
            average_precision(similarities.max(axis=0), hits, wrong),
            float(np.max(own, axis=0).mean()),
        )
    print(f"{name} grid {grid}: {time.perf_counter() - started:.0f} s", flush=True)
    return results


def average_precision(
    similarities: np.ndarray, hits: np.ndarray, others: np.ndarray
) -> float:
    """Micro average precision of one match a query, as in the DISC challenge."""
    scores = np.concatenate([similarities, others])
    right = np.concatenate([hits, np.zeros(len(others), bool)])
    order = np.argsort(-scores, kind="stable")
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    return float(precision[right[order]].sum() / len(hits))


def write_page(
    columns: dict[str, dict[str, tuple[float, ...]]], num_references: int
) -> str:
    """Lays the results out as Markdown."""
    lines = [
        "# Which copies each embedder finds",
        "",
        f"{NUM_COPIES} photos of {num_references} training photos, altered by each of 20 "
        f"transforms, searched among all of them; {NUM_OTHERS} photos that are copies of "
        "nothing are searched for beside them. Each cell: recall@1, micro average "
        "precision, and the mean cosine of the altered photo to its original. Made by "
        "`python -m benchmarks.planted_copies`; 224 px, seed 0. SSCD, made for this task, "
        "is not in the table: its weights cannot be shipped.",
        "",
        "| transform | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for transform in TRANSFORMS:
        cells = [
            "{:.2f} · {:.2f} · {:.2f}".format(*column[transform])
            for column in columns.values()
        ]
        lines.append(f"| {transform} | " + " | ".join(cells) + " |")
    means = [
        "**{:.2f} · {:.2f} · {:.2f}**".format(*np.mean(list(column.values()), axis=0))
        for column in columns.values()
    ]
    return "\n".join([*lines, "| **mean** | " + " | ".join(means) + " |", ""])


if __name__ == "__main__":
    main(*sys.argv[1:])
