"""What img2dataset downloaded: a folder of shards, each a tar file or a folder.

In: its output folder, in the format `webdataset` (`00000.tar`) or `files`
(`00000/000000000.jpg`). Out: an `ExampleSource` with the same ids for both.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copymit.data.captions_beside import (
    describe_suffixes,
    pair_texts,
    parse_metadata,
    read_beside,
)
from copymit.data.captions_file import refuse
from copymit.data.examples import Example, Provenance
from copymit.data.folder_listing import is_junk, read_head, warn_of_missing
from copymit.data.images import is_image_file
from copymit.data.tar_source import TarSource

_MAX_IMAGE_BYTES = 2**28
_MAX_TEXT_BYTES = 2**20


class _Shard(Protocol):
    example_ids: Sequence[str]
    caption_counts: np.ndarray
    provenance: Provenance

    def __getitem__(self, index: int) -> Example: ...

    def metadata(self, index: int) -> Mapping[str, Any]: ...


class Img2datasetSource:
    """The images of img2dataset's output folder, with the captions they came with.

    Ids are "shard/key". Shards that cannot be used are refused, or left out and listed
    in `skipped`: tar files that are cut off, or hold fewer images than their `.parquet`
    says were downloaded, as an interrupted download leaves them.

    Args:
      skip_damaged: leaves them out.
    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if it holds no shards, or one that cannot be used.
    """

    class_names: Sequence[str] = ()

    def __init__(self, folder: str | os.PathLike, *, skip_damaged: bool = False):
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}")
        self.skipped: list[tuple[str, str]] = []
        self._shards: list[_Shard] = []
        ids: list[str] = []
        starts = [0]
        paths = list(_shard_paths(root))
        warn_of_missing([path.name for path in paths], str(root))
        for path in paths:
            try:
                shard = _open_shard(path)
            except ValueError as error:
                if not skip_damaged:
                    raise
                self.skipped.append((path.name, f"cannot be used ({error})"))
                continue
            ids.extend(f"{path.stem}/{key}" for key in shard.example_ids)
            starts.append(len(ids))
            self._shards.append(shard)
        if not ids:
            raise ValueError(
                f"no images in {str(folder)!r}: give the --output_folder of img2dataset, "
                "made with --output_format=webdataset or files (parquet: python -m "
                "copymit.data.prepare huggingface)"
            )
        self._starts = np.array(starts)
        self.example_ids: Sequence[str] = ids
        self.labels = np.full(len(ids), -1, np.int32)
        self.caption_counts = np.concatenate([s.caption_counts for s in self._shards])
        found = [shard.provenance for shard in self._shards]
        self.provenance = Provenance(
            " and ".join(sorted({p.captions_from for p in found if p.captions_from})),
            left_out=[name for p in found for name in p.left_out],
        )

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: int) -> Example:
        shard, position = self._locate(index)
        return shard[position]._replace(example_id=self.example_ids[index])

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Returns what img2dataset wrote of an image: url, similarity, ..."""
        shard, position = self._locate(index)
        return shard.metadata(position)

    def _locate(self, index: int) -> tuple[_Shard, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[number], index - int(self._starts[number])


class _FilesShard:
    """One folder of the format `files`: images, and texts of the same name."""

    def __init__(self, folder: Path):
        self.folder = folder
        images: dict[str, str] = {}
        others, twice, leaving = [], [], []
        for path in sorted(folder.iterdir()):
            if is_junk(path.name):
                continue
            if path.is_symlink() or not path.is_file():
                leaving.append(str(path))
            elif not is_image_file(path.name, functools.partial(read_head, path)):
                others.append(path.name)
            elif path.stem in images:
                twice.append(str(path))
            else:
                images[path.stem] = path.name
        refuse("are links or no regular files: remove them", leaving)
        refuse("images share a name with another: keep one", twice)
        self.example_ids: Sequence[str] = list(images)
        self._images = list(images.values())
        self._beside, rest = pair_texts(self._images, others)
        self.provenance = Provenance(
            describe_suffixes(self._beside) if self._beside else "",
            left_out=[f"{folder.name}/{name}" for name in rest],
        )
        self.caption_counts = np.array(
            [self._count_captions(name) for name in self._images], np.int32
        )

    def __getitem__(self, index: int) -> Example:
        name = self._images[index]
        image = _read(self.folder / name, _MAX_IMAGE_BYTES)
        return Example(self.example_ids[index], image, self._captions(name), None)

    def metadata(self, index: int) -> Mapping[str, Any]:
        facts = self._beside.get(self._images[index], {}).get("json")
        return {} if facts is None else parse_metadata(self._read_text(facts))

    def _captions(self, image: str) -> tuple[str, ...]:
        texts = self._beside.get(image, {})
        return read_beside(texts, self._read_text, by_lines=False)

    def _count_captions(self, image: str) -> int:
        text = self._beside.get(image, {}).get("txt")
        if text is not None and (self.folder / text).stat().st_size:
            return 1
        try:
            return len(self._captions(image))
        except ValueError:  # Told when the example itself is read.
            return 1

    def _read_text(self, name: str) -> bytes:
        return _read(self.folder / name, _MAX_TEXT_BYTES)


def _shard_paths(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        is_folder = (
            path.is_dir() and not path.is_symlink() and path.name[:1] not in "._"
        )
        if path.suffix == ".tar" or is_folder:
            yield path


def _open_shard(path: Path) -> _Shard:
    shard: _Shard = TarSource([path]) if path.suffix == ".tar" else _FilesShard(path)
    downloaded = _downloaded(path.with_name(f"{path.stem}.parquet"))
    if downloaded is not None and downloaded != len(shard.example_ids):
        raise ValueError(
            f"{path} holds {len(shard.example_ids)} images, but {downloaded} were "
            "downloaded according to the .parquet beside it: run img2dataset again"
        )
    return shard


def _downloaded(table: Path) -> int | None:
    """Counts the images that a shard should hold, if its table says so."""
    if not table.is_file():
        return None
    try:
        status = pq.read_table(table, columns=["status"])["status"].to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(
            f"{table} cannot be read ({error}): remove it or run img2dataset again"
        ) from error
    return status.count("success")


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than {most} bytes")
    return data
