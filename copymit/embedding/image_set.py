"""Sets of images to compare: ids and random access to uint8 RGB, wherever they lie."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from copymit.data.examples import ExampleSource
from copymit.data.images import decode_image, resize_and_crop
from copymit.data.sources import FolderSource


class ImageSet(NamedTuple):
    """A named set of images.

    Attributes:
      name: `generations`, `references` or `heldout`.
      ids: unique: example ids or paths relative to a folder.
      read: position -> image (H, W, 3), uint8.
    """

    name: str
    ids: Sequence[str]
    read: Callable[[int], UInt8[np.ndarray, "H W 3"]]

    def by_id(self, image_id: str) -> UInt8[np.ndarray, "H W 3"]:
        """Reads the image of an id."""
        return self.read(self._positions()[image_id])

    def _positions(self) -> dict[str, int]:
        return {image_id: i for i, image_id in enumerate(self.ids)}


def examples_as_images(
    name: str, source: ExampleSource, indices: np.ndarray, size: int
) -> ImageSet:
    """Views examples as training sees them: short side resized, centre crop."""
    return ImageSet(
        name,
        [source.example_ids[i] for i in indices],
        functools.partial(_read_example, source, indices, size),
    )


def folder_as_images(name: str, folder: str | Path, size: int | None) -> ImageSet:
    """Views a folder of images, resized and cropped to `size` pixels.

    Args:
      size: None takes the images as they are, and then they must all be equally large.
    Raises:
      FileNotFoundError, ValueError: for a missing or empty folder, an unreadable image,
        or images of several sizes.
    """
    source = FolderSource(folder)
    if size is None:
        size = common_size(source, str(folder))
    return examples_as_images(name, source, np.arange(len(source)), size)


def common_size(source: ExampleSource, folder: str) -> int:
    """Returns the side in pixels that all images of a folder share.

    Raises:
      ValueError: if they differ or are not square; lists the sizes.
    """
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(lambda i: _size(source, i), range(len(source))))
    counts: dict[tuple[int, int], int] = {}
    for size in sizes:
        counts[size] = counts.get(size, 0) + 1
    if len(counts) > 1:
        listing = ", ".join(
            f"{count} of {w} x {h}" for (w, h), count in sorted(counts.items())[:5]
        )
        raise ValueError(
            f"{folder} holds images of {len(counts)} sizes ({listing}): similarity and "
            "quality depend on the size, so give one size at a time"
        )
    width, height = sizes[0]
    if width != height:
        raise ValueError(
            f"{folder} holds images of {width} x {height} pixels: crop them to squares"
        )
    return width


def read_batches(
    images: ImageSet, batch_size: int
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Reads all images in order, in full batches but for the last one."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images.ids), batch_size):
            positions = range(start, min(start + batch_size, len(images.ids)))
            yield np.stack(list(pool.map(images.read, positions)))


def _read_example(source, indices, size, position):
    example = source[int(indices[position])]
    return resize_and_crop(decode_image(example.image, example.example_id), size)


def _size(source: ExampleSource, index: int) -> tuple[int, int]:
    example = source[index]
    return decode_image(example.image, example.example_id).size
