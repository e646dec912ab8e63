"""Whether images can be decoded, found out once for all runs on the same folder.

In: a source and the examples of it that a run uses. Out: those that are good. A file that
was good is known by its name, size and time of change, so that only new and changed
files are decoded again; data that copymit prepared were decoded then.
"""

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from jaxtyping import Int, UInt64

from copymit.data.examples import ExampleSource
from copymit.data.images import MAX_PIXELS, ImageError, decode_image
from copymit.data.record_source import RecordSource
from copymit.data.sources import EmbeddedSource, FolderSource
from copymit.progress import Progress
from copymit.storage import write_whole

logger = logging.getLogger(__name__)

_IMAGES_PER_TASK = 32
# Counted up when `decode_image` refuses what it did not before.
_VERSION = 1


def check_images(
    source: ExampleSource,
    indices: Sequence[int] | np.ndarray,
    on_corrupt: str = "stop",
    max_pixels: int = MAX_PIXELS,
    remember_in: epath.Path | None = None,
) -> tuple[Int[np.ndarray, " N"], list[tuple[str, str]]]:
    """Decodes every image once, so that training cannot meet a bad one.

    Args:
      indices: the examples of `source` to check.
      on_corrupt: "stop" raises one error that lists all bad images; "skip" logs them.
      max_pixels: at most `MAX_PIXELS`.
      remember_in: directory that says which files of folders were good before.
    Returns:
      The indices of the good images in their order, and (example_id, reason) of each
      skipped one.
    Raises:
      FileNotFoundError: if files of a prepared data set are absent.
      ValueError: if an image is bad and `on_corrupt` is "stop", if all of them are bad,
        or if an argument is out of range.
    """
    if on_corrupt not in ("stop", "skip"):
        raise ValueError(f'on_corrupt must be "stop" or "skip", got {on_corrupt!r}')
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"max_pixels must be in [1, {MAX_PIXELS}], got {max_pixels}")
    indices = np.asarray(indices, np.int64)
    if isinstance(source, RecordSource):
        source.check_files()
    if isinstance(source, RecordSource | EmbeddedSource):
        return indices, []  # what wrote them has decoded them
    if isinstance(source, FolderSource) and remember_in is not None:
        about = f"{_VERSION} {max_pixels} {os.path.abspath(source.folder)}"
        name = hashlib.sha256(os.fsencode(about)).hexdigest()[:16]
        faults = _find_new_faults(
            source, indices, max_pixels, remember_in / f"{name}.npy"
        )
    else:
        faults = _find_faults(source, indices, max_pixels)
    skipped = [
        (source.example_ids[index], fault)
        for index, fault in zip(indices, faults, strict=True)
        if fault
    ]
    listing = "".join(f"\n  {example_id!r} {fault}" for example_id, fault in skipped)
    if skipped and (on_corrupt == "stop" or len(skipped) == len(indices)):
        way_out = (
            'Repair or remove them, or set on_corrupt to "skip".'
            if len(skipped) < len(indices)
            else "None is left to train on."
        )
        raise ValueError(
            f"{len(skipped)} of {len(indices)} images cannot be used:{listing}\n"
            + way_out
        )
    if skipped:
        logger.warning(
            "skipping %d of %d images:%s", len(skipped), len(indices), listing
        )
    return indices[[not fault for fault in faults]], skipped


def _find_new_faults(
    source: FolderSource, indices: np.ndarray, max_pixels: int, memory: epath.Path
) -> list[str]:
    """Does not decode what is as it was when it was good; notes what is good now."""
    good = _read_memory(memory)
    # Before they are decoded: a file that changes meanwhile is a new one next time.
    stamps = np.array([_stamp(source, int(i)) for i in indices], np.uint64)
    new = np.flatnonzero(~np.isin(stamps, good))
    faults = np.full(len(indices), "", object)
    faults[new] = _find_faults(source, indices[new], max_pixels)
    found = stamps[new][faults[new] == ""]
    if len(found):
        _write_memory(memory, np.union1d(good, found))
    if len(new) < len(indices):
        logger.info(
            "%d of %d images are as they were when they were checked",
            len(indices) - len(new),
            len(indices),
        )
    return faults.tolist()


def _find_faults(
    source: ExampleSource, indices: np.ndarray, max_pixels: int
) -> list[str]:
    """Says of each image why it cannot be used, or nothing if it can."""
    tasks = [
        indices[start : start + _IMAGES_PER_TASK]
        for start in range(0, len(indices), _IMAGES_PER_TASK)
    ]
    progress = Progress("images checked", len(indices))
    faults: list[str] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(
            lambda task: [_find_fault(source, int(i), max_pixels) for i in task], tasks
        ):
            faults += found
            progress.add(len(found))
    return faults


def _find_fault(source: ExampleSource, index: int, max_pixels: int) -> str:
    try:
        decode_image(source[index].image, source.example_ids[index], max_pixels)
    except ImageError as error:
        return error.reason
    except OSError as error:
        return f"cannot be read ({error})"
    return ""


def _stamp(source: FolderSource, index: int) -> int:
    """Hashes a file's name, size and time of change."""
    example_id = source.example_ids[index]
    try:
        status = os.stat(os.path.join(source.folder, example_id))
    except OSError:
        return 0  # decoding it says what is wrong
    text = f"{example_id}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _read_memory(path: epath.Path) -> UInt64[np.ndarray, " K"]:
    """Reads the stamps of good files; none if they cannot be read."""
    try:
        if not path.exists():
            return np.empty(0, np.uint64)
        stamps = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        return np.asarray(stamps, np.uint64)
    except Exception as error:  # each client library has kinds of its own
        logger.warning("%s is not used: %s", path, error)
        return np.empty(0, np.uint64)


def _write_memory(path: epath.Path, stamps: UInt64[np.ndarray, " K"]) -> None:
    file = io.BytesIO()
    np.save(file, stamps, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())
    except Exception as error:  # as above
        logger.warning("the next start checks all images again: %s", error)
