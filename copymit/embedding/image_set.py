"""Sets of images to compare: ids and random access to uint8 RGB, wherever they lie."""

import contextlib
import functools
import glob
import io
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from copymit.data.captions_file import listed
from copymit.data.examples import ExampleSource
from copymit.data.folder_listing import LayoutError, read_head
from copymit.data.folder_source import FolderSource
from copymit.data.images import (
    IMAGE_SUFFIXES,
    ImageError,
    decode_image,
    is_image_file,
    read_size,
    resize_and_crop,
)
from copymit.data.sources import open_folder
from copymit.data.tar_source import TarSource
from copymit.progress import Progress

logger = logging.getLogger(__name__)

# Number of images by (width, height).
Sizes = Mapping[tuple[int, int], int]

_MAX_FILE_BYTES = 2**28
_HEADERS_PER_TASK = 64
SKIP = "repair it, or leave such images out with --eval.on_corrupt=skip"


class ImageSet(NamedTuple):
    """A named set of images.

    Attributes:
      name: `generations`, `references` or `heldout`.
      ids: unique: example ids or paths relative to a folder.
      read: position -> image (H, W, 3), uint8; raises an `ImageError`.
      read_original: the same as it was before it was brought to the size of others, for
        networks that say themselves how to; None where it is `read`.
      fit: what brings an original to that size, where there is `read_original`.
      read_size: position -> (width, height) of `read`, without decoding the image; None
        where only reading tells.
    """

    name: str
    ids: Sequence[str]
    read: Callable[[int], UInt8[np.ndarray, "H W 3"]]
    read_original: Callable[[int], UInt8[np.ndarray, "h w 3"]] | None = None
    fit: Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "H W 3"]] | None = (
        None
    )
    read_size: Callable[[int], tuple[int, int]] | None = None


def reader_by_id(
    images: ImageSet, original: bool = False
) -> Callable[[str], UInt8[np.ndarray, "H W 3"]]:
    """Returns a function id -> image, as it was before resizing if `original`."""
    positions = {image_id: i for i, image_id in enumerate(images.ids)}
    read = images.read_original if original and images.read_original else images.read
    return lambda image_id: read(positions[image_id])


def open_source(images: Any) -> ExampleSource | None:
    """Opens what lies in files: a folder of any kind, a tar file or a pattern of several.

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
        return open_folder(images)
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
      images: whatever `view_images` knows.
      size: None takes the short side, which all must share.
      keep_original: whether networks may see the images before that.
      skip_corrupt: lets images that cannot be read pass until they are asked for.
    Raises:
      FileNotFoundError, ValueError: for something that is missing, empty, damaged or of
        another kind, or images whose short sides differ.
    """
    opened = view_images(name, images)
    if size is None:
        size = common_size(name, count_sizes(opened, skip_corrupt))
    return resized(opened, size, keep_original=keep_original)


def view_images(name: str, images: Any) -> ImageSet:
    """Views images of any kind as they are.

    Args:
      images: a folder; a pattern of image files, such as `photos/**/*.png`, of any depth
        and wherever links lead; tar files in webdataset's layout (a path, or a pattern
        such as `shards/*.tar`); an `.npz` or `.npy` file or an array of shape
        (N, H, W, 3), uint8; a list of paths, PIL images or arrays; an `ExampleSource`;
        an `ImageSet`.
    Raises:
      FileNotFoundError, ValueError: for something that is missing, empty, damaged or of
        another kind.
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
    return opened


def resized(images: ImageSet, size: int, *, keep_original: bool = False) -> ImageSet:
    """Views images resized (short side) and cropped to `size` pixels."""
    fit = functools.partial(_fit, size)
    return images._replace(
        read=lambda position: fit(images.read(position)),
        read_original=images.read if keep_original else None,
        fit=fit if keep_original else None,
        read_size=lambda _: (size, size),
    )


def examples_as_images(
    name: str, source: ExampleSource, indices: np.ndarray, size: int
) -> ImageSet:
    """Views examples as training sees them: short side resized, centre crop."""
    return resized(_of_source(name, source, indices), size)


def count_sizes(images: ImageSet, skip_corrupt: bool = False) -> Sizes:
    """Counts images by width and height, of files without decoding more than headers.

    Args:
      skip_corrupt: whether to leave out images that cannot be read.
    Raises:
      ImageError: names an image that cannot be read. One with a good header and corrupt
        pixels shows only when it is read.
    """

    def size_of(position: int) -> tuple[int, int]:
        if images.read_size is not None:
            return images.read_size(position)
        height, width = images.read(position).shape[:2]
        return width, height

    def sizes_of(positions: range) -> Iterator[tuple[str, tuple[int, int]]]:
        for position in positions:
            try:
                yield images.ids[position], size_of(position)
            except ImageError as error:
                if not skip_corrupt:
                    reason = f"{error.reason}; {SKIP}"
                    raise ImageError(error.name, reason) from error

    count = len(images.ids)
    starts = range(0, count, _HEADERS_PER_TASK)
    tasks = [range(i, min(i + _HEADERS_PER_TASK, count)) for i in starts]
    progress = Progress(f"sizes of the {images.name} read", count)
    sizes: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda task: list(sizes_of(task)), tasks)
        for task, named in zip(tasks, found, strict=True):
            sizes.update(size for _, size in named)
            examples |= {size: name for name, size in named if size not in examples}
            progress.add(len(task))
    if len({min(size) for size in sizes}) > 1:
        rarest = sizes.most_common()[:0:-1]
        odd = [f"{examples[size]} {size[0]} x {size[1]}" for size, _ in rarest]
        logger.warning("%s of other sizes than most: %s", images.name, listed(odd))
    return sizes


def common_size(name: str, sizes: Sizes) -> int:
    """Returns the short side in pixels that images share: squares have all of it.

    Args:
      name: of the images, for errors.
      sizes: of all of them that can be read.
    Raises:
      ValueError: if they differ; lists the sizes.
    """
    if not sizes:
        raise ValueError(f"none of the {name} can be read")
    sides = {min(size) for size in sizes}
    if len(sides) > 1:
        most = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:5]
        shown = ", ".join(f"{n} of {w} x {h}" for (w, h), n in most)
        raise ValueError(
            f"the {name} have {len(sizes)} sizes ({shown}): similarity and quality "
            "depend on the size, so say at which to compare them, with "
            "--eval.resolution=PIXELS, or in Python resolution=PIXELS"
        )
    return sides.pop()


def _of_source(name: str, source: ExampleSource, indices: np.ndarray) -> ImageSet:
    def read(position: int) -> np.ndarray:
        example = source[int(indices[position])]
        return np.asarray(decode_image(example.image, example.example_id))

    def size_of(position: int) -> tuple[int, int]:
        index = int(indices[position])
        example_id = source.example_ids[index]
        if isinstance(source, FolderSource):
            path = os.path.join(source.folder, example_id)
            return _read_header(path, example_id)
        return read_size(io.BytesIO(source[index].image), example_id)

    ids = [source.example_ids[i] for i in indices]
    return ImageSet(name, ids, read, read_size=size_of)


def _of_array(name: str, array: np.ndarray, ids: Iterable[str] | None) -> ImageSet:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"{name} is an array of shape {array.shape} and type {array.dtype}: give "
            "uint8, 0 to 255, of shape (N, H, W, 3)"
        )
    if not len(array):
        raise ValueError(f"{name} holds no images")
    size = array.shape[2], array.shape[1]
    own = _numbered(len(array)) if ids is None else list(ids)
    return ImageSet(name, own, array.__getitem__, read_size=lambda _: size)


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

    def size_of(position: int) -> tuple[int, int]:
        image = images[position]
        if isinstance(image, str | Path):
            return _read_header(image, str(image))
        if isinstance(image, Image.Image):
            return image.size
        height, width = read(position).shape[:2]
        return width, height

    return ImageSet(name, ids, read, read_size=size_of)


def _of_pattern(name: str, pattern: str) -> ImageSet:
    """Lists the image files that match, by their paths below what has no wildcard."""
    start = Path(pattern.partition("*")[0] + "x").parent
    found = sorted(glob.glob(pattern, recursive=True))
    files = [path for path in found if os.path.isfile(path)]
    paths = [p for p in files if is_image_file(p, functools.partial(read_head, p))]
    if len(paths) < len(files):
        others = [path for path in files if path not in set(paths)]
        logger.warning(
            "%d files that match %r are no images: %s",
            len(others),
            pattern,
            listed(others),
        )
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
    with _opened(path, str(path)) as file:
        return file.read()


def _read_header(path: str | Path, name: str) -> tuple[int, int]:
    with _opened(path, name) as file:
        return read_size(file, name)


@contextlib.contextmanager
def _opened(path: str | Path, name: str) -> Iterator[BinaryIO]:
    """Opens an image file that is not too large."""
    try:
        with epath.Path(path).open("rb") as file:
            if file.seek(0, os.SEEK_END) > _MAX_FILE_BYTES:
                raise ImageError(name, f"has more than {_MAX_FILE_BYTES} bytes")
            file.seek(0)
            yield file
    except OSError as error:
        raise ImageError(name, f"cannot be read ({error})") from error


def _fit(size: int, pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.shape == (size, size, 3):
        return pixels
    return resize_and_crop(Image.fromarray(pixels), size)


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
