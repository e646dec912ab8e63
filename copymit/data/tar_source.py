"""Images in tar files as webdataset and img2dataset write them.

In: the paths of tar files. Out: an `ExampleSource` with random access: the headers are
read once, images and texts when they are asked for. Nothing is extracted to disk, and
members' names are texts, never paths.
"""

import functools
import operator
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, SupportsIndex

import numpy as np

from copymit.data.captions_beside import (
    Beside,
    describe_suffixes,
    pair_texts,
    parse_metadata,
    read_beside,
)
from copymit.data.captions_file import is_text, listed, refuse
from copymit.data.examples import Example, Provenance
from copymit.data.folder_listing import is_junk, warn_of_missing
from copymit.data.images import HEAD_BYTES, is_image_file

_MAX_IMAGE_BYTES = 2**28
_MAX_TEXT_BYTES = 2**20
_BLOCK = 512  # bytes; the unit of the format


class _Member(NamedTuple):
    offset: int
    size: int


class _Sample(NamedTuple):
    """An image and the texts beside it, as names of members, by suffix."""

    tar: int
    image: str
    texts: Beside


class TarSource:
    """The images of tar files, each with the texts beside it, see `pair_texts`.

    Ids are the members' names without suffix, after the tar file's name if there are
    several.

    Raises:
      FileNotFoundError: if a file is absent.
      ValueError: for a damaged or cut off tar file, names that leave the archive or
        occur twice, images or texts that are too large, or no images at all.
    """

    class_names: Sequence[str] = ()

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self._paths = [Path(path) for path in paths]
        if len(paths) > 1:
            names = [path.name for path in self._paths]
            warn_of_missing(names, str(self._paths[0].parent))
        self._members: list[dict[str, _Member]] = []
        self._samples: list[_Sample] = []
        ids: list[str] = []
        left_out: list[str] = []
        for number, path in enumerate(self._paths):
            prefix = f"{path.name}/" if len(self._paths) > 1 else ""
            members, images = _index(path)
            samples, rest = _pair(path, members, images)
            self._members.append(members)
            left_out += (prefix + name for name in rest)
            for key, (image, texts) in samples.items():
                ids.append(prefix + key)
                self._samples.append(_Sample(number, image, texts))
        if not ids:
            raise ValueError(
                f"no images in {listed([str(path) for path in self._paths])}"
            )
        self.example_ids: Sequence[str] = tuple(ids)
        self.labels = np.full(len(ids), -1, np.int32)
        self.caption_counts = np.array(
            [self._count_captions(sample) for sample in self._samples], np.int32
        )
        texts_by_id = dict(zip(ids, (s.texts for s in self._samples), strict=True))
        has_captions = self.caption_counts.any()
        origin = describe_suffixes(texts_by_id) if has_captions else ""
        self.provenance = Provenance(origin, left_out=left_out)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        sample, example_id = self._samples[index], self.example_ids[index]
        try:
            captions = self._captions(sample)
        except ValueError as error:
            path = self._paths[sample.tar]
            raise ValueError(f"{path}: text of {example_id!r}: {error}") from error
        return Example(example_id, self._read(sample.tar, sample.image), captions, None)

    def metadata(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Returns the object in the `.json` beside an image, or nothing if none is.

        Raises:
          ValueError: if it is not one JSON object.
        """
        sample = self._samples[operator.index(index)]
        facts = sample.texts.get("json")
        return {} if facts is None else parse_metadata(self._read(sample.tar, facts))

    def _captions(self, sample: _Sample) -> tuple[str, ...]:
        read = functools.partial(self._read, sample.tar)
        return read_beside(sample.texts, read, by_lines=False)

    def _count_captions(self, sample: _Sample) -> int:
        """Counts captions, and reads for that only what is not one text."""
        members = self._members[sample.tar]
        plain = [name for suffix, name in sample.texts.items() if suffix != "json"]
        is_one = len(plain) == 1 and not plain[0].lower().endswith(".captions")
        if is_one and members[plain[0]].size:
            return 1
        try:
            return len(self._captions(sample))
        except ValueError:  # Told when the example itself is read.
            return 1

    def _read(self, tar: int, name: str) -> bytes:
        member = self._members[tar][name]
        with self._paths[tar].open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)


def _index(path: Path) -> tuple[dict[str, _Member], list[str]]:
    """Lists a tar file's members by name, and which of them are images."""
    if not path.is_file():
        raise FileNotFoundError(f"no tar file at {path}")
    found: dict[str, _Member] = {}
    images, leaving, twice = [], [], []
    file_size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as file:
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
                if any(map(is_junk, name.parts)):
                    continue
                if str(name) in found:
                    twice.append(entry.name)
                member = found[str(name)] = _Member(entry.offset_data, entry.size)
                if is_image_file(name.name, functools.partial(_head, file, member)):
                    images.append(str(name))
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
    return found, images


def _pair(
    path: Path, members: Mapping[str, _Member], images: Sequence[str]
) -> tuple[dict[str, tuple[str, Beside]], list[str]]:
    """Maps keys to image and texts; lists the members that are neither."""
    there = set(images)
    beside, rest = pair_texts(images, (name for name in members if name not in there))
    samples: dict[str, tuple[str, Beside]] = {}
    for image in images:
        name = PurePosixPath(image)
        key = str(name.with_suffix("")) if name.suffix else image
        if key in samples:
            raise ValueError(
                f"{path}: {key!r} has 2 images ({samples[key][0]}, {image}): keep one"
            )
        texts = beside.get(image, {})
        text_bytes = max((members[text].size for text in texts.values()), default=0)
        if members[image].size > _MAX_IMAGE_BYTES or text_bytes > _MAX_TEXT_BYTES:
            raise ValueError(
                f"{path}: {key!r} has more than {_MAX_IMAGE_BYTES} bytes of image or "
                f"{_MAX_TEXT_BYTES} of text"
            )
        samples[key] = (image, texts)
    return samples, rest


def _head(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(HEAD_BYTES, member.size))
