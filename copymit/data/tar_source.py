"""Images in tar files as webdataset and img2dataset write them.

In: the paths of tar files. Out: an `ExampleSource` with random access: the headers are
read once, images and texts when they are asked for. Nothing is extracted to disk, and
members' names are texts, never paths.
"""

import json
import operator
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from copymit.data.captions_file import is_text, listed, refuse
from copymit.data.examples import Example

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
_MAX_IMAGE_BYTES = 2**28
_MAX_TEXT_BYTES = 2**20
_BLOCK = 512  # bytes; the unit of the format
_DEFAULT_CAPTION = "An image"


class _Member(NamedTuple):
    tar: int
    offset: int
    size: int


class _Sample(NamedTuple):
    """The members that share a name up to its first dot."""

    image: _Member
    text: _Member | None
    facts: _Member | None


class TarSource:
    """The images of tar files, each with the text of the `.txt` beside it.

    Ids are the members' names without suffix, after the tar file's name if there are
    several. Samples without an image are counted in `num_without_image`.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: for a damaged or cut off tar file, names that leave the archive or
        occur twice, images or texts that are too large, or no images at all.
    """

    class_names: Sequence[str] = ()

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self._paths = [Path(path) for path in paths]
        self._samples: list[_Sample] = []
        self.num_without_image = 0
        ids: list[str] = []
        for number, path in enumerate(self._paths):
            prefix = f"{path.name}/" if len(self._paths) > 1 else ""
            for key, members in _index(path, number).items():
                sample = _as_sample(path, key, members)
                if sample is None:
                    self.num_without_image += 1
                    continue
                ids.append(prefix + key)
                self._samples.append(sample)
        if not ids:
            raise ValueError(
                f"no images in {listed([str(path) for path in self._paths])}"
            )
        self.example_ids: Sequence[str] = tuple(ids)
        self.labels = np.full(len(ids), -1, np.int32)
        self.caption_counts = np.ones(len(ids), np.int32)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        sample, example_id = self._samples[index], self.example_ids[index]
        caption = _DEFAULT_CAPTION
        if sample.text is not None:
            data = self._read(sample.text)
            try:
                caption = data.decode().strip() or _DEFAULT_CAPTION
            except UnicodeDecodeError as error:
                path = self._paths[sample.text.tar]
                raise ValueError(f"{path}: text of {example_id!r}: {error}") from error
        return Example(example_id, self._read(sample.image), (caption,), None)

    def metadata(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Returns the object in the `.json` beside an image, or nothing if none is.

        Raises:
          ValueError: if it is not one JSON object.
        """
        index = operator.index(index)
        facts = self._samples[index].facts
        return {} if facts is None else parse_metadata(self._read(facts))

    def _read(self, member: _Member) -> bytes:
        with self._paths[member.tar].open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


def parse_metadata(data: bytes) -> dict[str, Any]:
    """Reads the `.json` that lies beside an image.

    Raises:
      ValueError: if it is not one JSON object.
    """
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is damaged: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"its .json holds a {type(entries).__name__}, not an object")
    return entries


def _index(path: Path, number: int) -> dict[str, dict[str, _Member]]:
    """Lists a tar file's members by name without suffix, and by suffix."""
    if not path.is_file():
        raise FileNotFoundError(f"no tar file at {path}")
    found: dict[str, dict[str, _Member]] = {}
    leaving, twice = [], []
    file_size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                end = entry.offset_data + -(-entry.size // _BLOCK) * _BLOCK
                if not entry.isfile():
                    continue
                if entry.offset_data + entry.size > file_size:
                    raise tarfile.ReadError(f"{entry.name} is cut off")
                name = PurePosixPath(entry.name)
                if name.is_absolute() or ".." in name.parts or not is_text(entry.name):
                    leaving.append(entry.name)
                    continue
                stem, _, suffix = name.name.partition(".")
                members = found.setdefault(str(name.with_name(stem or "_")), {})
                if suffix.lower() in members:
                    twice.append(entry.name)
                members[suffix.lower()] = _Member(number, entry.offset_data, entry.size)
        with path.open("rb") as file:
            file.seek(end)
            # Without the mark of the end a download may have stopped between members.
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is not a whole, uncompressed tar file ({error}): download it again"
        ) from error
    refuse(f"{path}: members' names leave the archive: do not trust this file", leaving)
    refuse(f"{path}: members occur twice: write the file anew", twice)
    return found


def _as_sample(path: Path, key: str, members: dict[str, _Member]) -> _Sample | None:
    images = [members[suffix] for suffix in _IMAGE_SUFFIXES if suffix in members]
    if not images:
        return None
    if len(images) > 1:
        raise ValueError(f"{path}: {key!r} has {len(images)} images: keep one")
    text, facts = members.get("txt"), members.get("json")
    text_bytes = max(member.size if member else 0 for member in (text, facts))
    if images[0].size > _MAX_IMAGE_BYTES or text_bytes > _MAX_TEXT_BYTES:
        raise ValueError(
            f"{path}: {key!r} has more than {_MAX_IMAGE_BYTES} bytes of image or "
            f"{_MAX_TEXT_BYTES} of text"
        )
    return _Sample(images[0], text, facts)
