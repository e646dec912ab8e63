"""How well each embedder finds planted copies of photos, one transform at a time.

    python -m benchmarks.planted_copies PHOTOS.tar docs/planted_copies.md

PHOTOS.tar holds `.../train/CLASS/*.JPEG`, as Imagenette does. The references are 300 of
its training photos; 50 of them are altered by each of 20 transforms. Photos of `val`,
which are copies of nothing, are searched for beside them. All is done once more with
everything shrunk to the sizes of smaller images. Prints the tables and writes them.
"""

import io
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from copymit.data.images import decode_image, resize_and_crop
from copymit.embedding.embed import embed_arrays
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import unit_rows
from copymit.search.exact import search_exact

SIZE_PX = 224  # at which photos are altered
SIZES_PX = (64, 128, 224)  # and seen
NUM_REFERENCES = 300
NUM_COPIES = 50
NUM_OTHERS = 100
EMBEDDERS = ("sscd_288_int8", "efficientnet_lite0", "pixels")
BATCH = 32
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


class Found(NamedTuple):
    """How well copies by one transform are found.

    Attributes:
      recall: share whose nearest reference is their original.
      precision: micro average precision of the nearest references.
      auc: how probably a copy is more similar to its original than a photo that is no
        copy is to any reference.
      similarity: mean, of copies to their originals.
    """

    recall: float
    precision: float
    auc: float
    similarity: float


def main(archive: str, page: str) -> None:
    """Measures and writes the tables."""
    rng = np.random.default_rng(0)
    photos = read_photos(archive, "/train/")
    references = photos[np.sort(rng.choice(len(photos), NUM_REFERENCES, replace=False))]
    others = read_photos(archive, "/val/")
    copied = rng.choice(NUM_REFERENCES, NUM_COPIES, replace=False)
    strangers = others[rng.choice(len(others), NUM_OTHERS + NUM_COPIES, replace=False)]
    queries = make_queries(references[copied], strangers[NUM_OTHERS:])
    sets = [references, strangers[:NUM_OTHERS], *queries.values()]
    tables = {}
    for size in SIZES_PX:
        seen = [shrink(images, size) for images in sets]
        tables[size] = {name: measure(name, seen, copied) for name in EMBEDDERS}
        Path(page).write_text(write_page(tables))
    print(write_page(tables))


def read_photos(archive: str, part: str) -> np.ndarray:
    """Reads the photos of a part in the order of their names."""
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if part in n and n.endswith(".JPEG"))
        data = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    with ThreadPoolExecutor() as pool:
        photos = pool.map(
            lambda pair: resize_and_crop(decode_image(*pair), SIZE_PX),
            zip(data, names, strict=True),
        )
        return np.stack(list(photos))


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Shows images as they would be at another size."""
    return np.stack([resize_and_crop(Image.fromarray(i), size) for i in images])


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


def measure(name: str, sets: Sequence[np.ndarray], copied: np.ndarray) -> list[Found]:
    """Searches by one embedder.

    Args:
      sets: the references, photos that are copies of nothing, and the altered photos of
        each transform.
      copied: rows of the originals of these.
    """
    references, strangers, *queries = sets
    embedder = make_embedder(name)
    started = time.perf_counter()

    def look(images: np.ndarray) -> np.ndarray:
        return unit_rows(embed_arrays(embedder, images, BATCH))

    known = look(references)
    wrong = search_exact(look(strangers), known, 1).similarities[:, 0]
    results = []
    for images in queries:
        seen = look(images)
        nearest = search_exact(seen, known, 1)
        hits = nearest.indices[:, 0] == copied
        own = np.einsum("qd,qd->q", seen, known[copied])
        results.append(
            Found(
                float(hits.mean()),
                average_precision(nearest.similarities[:, 0], hits, wrong),
                float((own[:, None] > wrong).mean()),
                float(own.mean()),
            )
        )
    seconds = time.perf_counter() - started
    print(f"{name}, {references.shape[1]} px: {seconds:.0f} s", flush=True)
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


def write_page(tables: dict[int, dict[str, list[Found]]]) -> str:
    """Lays the results out as Markdown.

    Args:
      tables: size in pixels -> embedder -> what was found by transform.
    """
    protocols = [f"- {make_embedder(name).protocol}" for name in EMBEDDERS]
    lines = [
        "# Which copies each embedder finds",
        "",
        f"{NUM_COPIES} of {NUM_REFERENCES:,} photos, altered by each of "
        f"{len(TRANSFORMS)} transforms and searched among all of them; {NUM_OTHERS} "
        "photos that are copies of nothing are searched for beside them. Photos are "
        f"altered at {SIZE_PX} px, and then all of them are shrunk to the size of the "
        "table. Each cell: recall@1, micro average precision, area under the curve (how "
        "probably a copy is more similar to its original than a photo that is no copy is "
        "to its nearest), and the mean cosine of a copy to its original. Made by `python "
        "-m benchmarks.planted_copies` from Imagenette; seed 0.",
        "",
        *protocols,
    ]
    for size, columns in tables.items():
        lines += [
            "",
            f"## At {size} px",
            "",
            "| transform | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for i, transform in enumerate(TRANSFORMS):
            cells = [_cell(found[i]) for found in columns.values()]
            lines.append(f"| {transform} | " + " | ".join(cells) + " |")
        means = [_cell(np.mean(found, axis=0)) for found in columns.values()]
        lines.append("| **mean** | " + " | ".join(f"**{m}**" for m in means) + " |")
    return "\n".join([*lines, ""])


def _cell(found: Sequence[float]) -> str:
    return " · ".join(f"{value:.2f}" for value in found)


if __name__ == "__main__":
    main(*sys.argv[1:])
