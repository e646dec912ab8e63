"""Sets of images to compare: ids and random access to uint8 RGB, wherever they lie."""

import functools
import glob
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from copymit.data.captions_file import listed
from copymit.data.examples import ExampleSource
from copymit.data.folder_listing import LayoutError
from copymit.data.folder_source import FolderSource
from copymit.data.images import (
    IMAGE_SUFFIXES,
    ImageError,
    decode_image,
    resize_and_crop,
)
from copymit.data.tar_source import TarSource

_MAX_FILE_BYTES = 2**28
SKIP = "repair it, or leave such images out with --eval.on_corrupt=skip"


class ImageSet(NamedTuple):
    """A named set of images.

    Attributes:
      name: `generations`, `references` or `heldout`.
      ids: unique: example ids or paths relative to a folder.
      read: position -> image (H, W, 3), uint8; raises an `ImageError`.
      read_original: the same as it was before it was brought to the size of others, for
        networks that say themselves how to; None where it is `read`.
    """

    name: str
    ids: Sequence[str]
    read: Callable[[int], UInt8[np.ndarray, "H W 3"]]
    read_original: Callable[[int], UInt8[np.ndarray, "h w 3"]] | None = None


def reader_by_id(
    images: ImageSet, original: bool = False
) -> Callable[[str], UInt8[np.ndarray, "H W 3"]]:
    """Returns a function id -> image, as it was before resizing if `original`."""
    positions = {image_id: i for i, image_id in enumerate(images.ids)}
    read = images.read_original if original and images.read_original else images.read
    return lambda image_id: read(positions[image_id])


def open_source(images: Any) -> ExampleSource | None:
    """Opens what lies in files: a folder, a tar file or a pattern of several.

    Returns:
      None for anything else, which `open_images` may know.
    Raises:
      FileNotFoundError, ValueError: for something that is missing or damaged.
    """
    if isinstance(images, ExampleSource):
        return images
    if not isinstance(images, str | Path) or str(images).endswith((".npz", ".npy")):
        return None
    if "*" in str(images) and not str(images).endswith(".tar"):
        return None
    if str(images).endswith(".tar"):
        paths = sorted(glob.glob(str(images)))
        if not paths:
            raise FileNotFoundError(f"no tar file matches {str(images)!r}")
        return TarSource(paths)
    try:
        return FolderSource(images)
    except LayoutError as error:
        raise ValueError(
            f"{error}. Or give a pattern: {os.path.join(str(images), '**', '*.png')!r}"
        ) from error


def open_images(
    name: str,
    images: Any,
    size: int | None,
    *,
    skip_corrupt: bool = False,
    keep_original: bool = False,
) -> ImageSet:
    """Views images of any kind, resized and cropped to `size` pixels.

    Args:
      images: a folder; a pattern of image files, such as `photos/**/*.png`, of any depth
        and wherever links lead; tar files in webdataset's layout (a path, or a pattern
        such as `shards/*.tar`); an `.npz` or `.npy` file or an array of shape
        (N, H, W, 3), uint8; a list of paths, PIL images or arrays; an `ExampleSource`;
        an `ImageSet`.
      size: None takes the images as they are; they must then be square and of one size.
      keep_original: whether networks may see the images before that.
      skip_corrupt: lets images that cannot be read pass until they are asked for.
    Raises:
      FileNotFoundError, ValueError: for something that is missing, empty, damaged or of
        another kind, or images of several sizes.
    """
    if isinstance(images, ImageSet):
        opened = images._replace(name=name)
    elif (source := open_source(images)) is not None:
        opened = _of_source(name, source, np.arange(len(source)))
    elif isinstance(images, str | Path) and "*" in str(images):
        opened = _of_pattern(name, str(images))
    elif isinstance(images, str | Path):
        opened = _of_array(name, *_read_arrays(Path(images)))
    elif isinstance(images, np.ndarray):
        opened = _of_array(name, images, None)
    elif isinstance(images, Sequence):
        opened = _of_list(name, images)
    else:
        raise ValueError(
            f"{name} is a {type(images).__name__}: give a folder, tar files, an array, "
            "an .npz file or a list of images"
        )
    _check_ids(opened)
    if size is None:
        size = common_size(opened, skip_corrupt)
    return opened._replace(
        read=functools.partial(_read_resized, opened.read, size),
        read_original=opened.read if keep_original else None,
    )


def examples_as_images(
    name: str, source: ExampleSource, indices: np.ndarray, size: int
) -> ImageSet:
    """Views examples as training sees them: short side resized, centre crop."""
    images = _of_source(name, source, indices)
    return images._replace(read=functools.partial(_read_resized, images.read, size))


def common_size(images: ImageSet, skip_corrupt: bool = False) -> int:
    """Returns the side in pixels that all images share.

    Raises:
      ValueError: if they differ or are not square; lists the sizes.
      ImageError: names an image that cannot be read.
    """

    def shape(position: int) -> tuple[int, int] | None:
        try:
            height, width = images.read(position).shape[:2]
        except ImageError as error:
            if skip_corrupt:
                return None
            raise ImageError(error.name, f"{error.reason}; {SKIP}") from error
        return width, height

    with ThreadPoolExecutor() as pool:
        counts = Counter(pool.map(shape, range(len(images.ids))))
    del counts[None]
    if not counts:
        raise ValueError(f"none of the {len(images.ids)} {images.name} can be read")
    sizes = ", ".join(f"{n} of {w} x {h}" for (w, h), n in counts.most_common(5))
    way_out = (
        "say at which size to compare them, with --eval.resolution=PIXELS, or in Python "
        "resolution=PIXELS"
    )
    if len(counts) > 1:
        raise ValueError(
            f"the {images.name} have {len(counts)} sizes ({sizes}): similarity and "
            f"quality depend on the size, so {way_out}"
        )
    ((width, height),) = counts
    if width != height:
        raise ValueError(f"the {images.name} are {width} x {height} pixels: {way_out}")
    return width


def _of_source(name: str, source: ExampleSource, indices: np.ndarray) -> ImageSet:
    def read(position: int) -> np.ndarray:
        example = source[int(indices[position])]
        return np.asarray(decode_image(example.image, example.example_id))

    return ImageSet(name, [source.example_ids[i] for i in indices], read)


def _of_array(name: str, array: np.ndarray, ids: Iterable[str] | None) -> ImageSet:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"{name} is an array of shape {array.shape} and type {array.dtype}: give "
            "uint8, 0 to 255, of shape (N, H, W, 3)"
        )
    if not len(array):
        raise ValueError(f"{name} holds no images")
    return ImageSet(
        name, _numbered(len(array)) if ids is None else list(ids), array.__getitem__
    )


def _of_list(name: str, images: Sequence[Any]) -> ImageSet:
    if not len(images):
        raise ValueError(f"{name} holds no images")
    are_paths = [isinstance(image, str | Path) for image in images]
    ids = [str(image) for image in images] if all(are_paths) else _numbered(len(images))

    def read(position: int) -> np.ndarray:
        image = images[position]
        if isinstance(image, str | Path):
            return np.asarray(decode_image(_read_file(image), str(image)))
        if isinstance(image, Image.Image):
            return np.asarray(image.convert("RGB"))
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ImageError(
                ids[position], f"is {array.dtype} of shape {array.shape}, not uint8 RGB"
            )
        return array

    return ImageSet(name, ids, read)


def _of_pattern(name: str, pattern: str) -> ImageSet:
    """Lists the image files that match, by their paths below what has no wildcard."""
    start = Path(pattern.partition("*")[0] + "x").parent
    found = sorted(glob.glob(pattern, recursive=True))
    paths = [path for path in found if path.lower().endswith(IMAGE_SUFFIXES)]
    if not paths:
        raise FileNotFoundError(
            f"no image matches {pattern!r}; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    ids = [Path(path).relative_to(start).as_posix() for path in paths]
    return _of_list(name, paths)._replace(ids=ids)


def _read_arrays(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Reads images, and ids where the file has them, without running pickles."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded as arrays:
            for key in ("images", "arr_0"):
                if key in arrays:
                    ids = arrays["ids"].tolist() if "ids" in arrays else None
                    return arrays[key], ids
            raise ValueError(f"it holds {listed(arrays.files)}, not images or arr_0")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as images: {error}") from error


def _read_file(path: str | Path) -> bytes:
    try:
        with epath.Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(str(path), f"cannot be read ({error})") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ImageError(str(path), f"has more than {_MAX_FILE_BYTES} bytes")
    return data


def _read_resized(read: Callable, size: int, position: int) -> np.ndarray:
    return resize_and_crop(Image.fromarray(np.asarray(read(position))), size)


def _numbered(count: int) -> list[str]:
    return [f"{i:06d}" for i in range(count)]


def _check_ids(images: ImageSet) -> None:
    counts = Counter(images.ids)
    if len(counts) < len(images.ids):
        twice = [image_id for image_id, count in counts.items() if count > 1]
        raise ValueError(
            f"{len(twice)} ids of the {images.name} occur more than once: "
            f"{listed(twice)}: give every image an id of its own"
        )
