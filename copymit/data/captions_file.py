"""The captions file of a set of images, in any format of `caption_tables`.

In: the file and the ids of the images found. Out: the captions of each image, or one error
that lists everything wrong with the file. Its paths are only compared with the ids; they
are never opened. And the other way: captions in, a file out, JSON or parquet.
"""

import itertools
import json
import operator
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from copymit.data.caption_tables import CaptionTable, read_caption_table
from copymit.data.examples import Example, ExampleSource, Provenance
from copymit.storage import whole

CAPTIONS_FORMATS = ("auto", "relative", "dcr")
_NUM_LISTED = 10
_SCHEMA = pa.schema([("example_id", pa.string()), ("captions", pa.list_(pa.string()))])
_ROWS_PER_GROUP = 10_000


def read_captions(
    path: Path, example_ids: Sequence[str], captions_format: str, column: str = ""
) -> list[tuple[str, ...]]:
    """Reads the captions of each image, in the order of `example_ids`.

    Args:
      captions_format: "relative": the paths are the ids. "dcr": the paths may be rooted
        elsewhere, and each belongs to the image that shares its longest suffix. "auto":
        "relative" if any path is an id, else "dcr". Backslashes are slashes, and letters
        with accents are equal however they are composed.
      column: of the captions in a table, see `read_caption_table`.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such table, a path occurs twice or does not mean exactly one
        image, an image has no entry or several, or a caption is empty or no text.
    """
    table = read_caption_table(path, column)
    return fit_captions(table, example_ids, captions_format, str(path))


def match_split(
    table: CaptionTable, example_ids: Sequence[str], captions_format: str, split: str
) -> tuple[CaptionTable, list[str]]:
    """Returns the rows of one split of a table, and the ids of its images."""
    rows = {k: v for k, v in table.entries.items() if table.splits.get(k) == split}
    matches = _match_paths(rows, example_ids, captions_format)
    wanted = {i for ids in matches.values() for i in ids}
    return CaptionTable(rows, {}), [i for i in example_ids if i in wanted]


def fit_captions(
    table: CaptionTable, example_ids: Sequence[str], captions_format: str, name: str
) -> list[tuple[str, ...]]:
    """Gives each image its captions; see `read_captions`."""
    if captions_format not in CAPTIONS_FORMATS:
        raise ValueError(
            f"captions_format must be one of {', '.join(CAPTIONS_FORMATS)}, "
            f"got {captions_format!r}"
        )
    entries = table.entries
    matches = _match_paths(entries, example_ids, captions_format)
    found: dict[str, list[str]] = {}
    for key, ids in matches.items():
        if len(ids) == 1:
            found.setdefault(ids[0], []).append(key)
    faults = {
        "captions for images that are absent": [k for k in matches if not matches[k]],
        "captions that fit several images": [k for k in matches if matches[k][1:]],
        "images with several entries": [i for i in found if found[i][1:]],
        "images without captions": [
            i for i in example_ids if all(entries[k] == [] for k in found.get(i, []))
        ],
        "entries that are not a list of texts": [
            k for k, v in entries.items() if not _is_list_of_texts(v)
        ],
        "entries with an empty caption": [
            k for k, v in entries.items() if _is_list_of_texts(v) and _has_blank(v)
        ],
    }
    report = [
        f"\n  {len(items)} {what}: {listed(items)}"
        for what, items in faults.items()
        if items
    ]
    if report:
        raise ValueError(
            f"captions file {name!r} has{''.join(report)}\nEvery image needs one "
            "entry and every entry one image: correct the file or the folder"
        )
    return [tuple(entries[found[example_id][0]]) for example_id in example_ids]


class CaptionedSource:
    """A source whose captions are those of a file.

    Args:
      captions_file, captions_format, caption_column: see `read_captions`.
    """

    def __init__(
        self,
        source: ExampleSource,
        captions_file: Path,
        captions_format: str = "auto",
        caption_column: str = "",
    ):
        self.source = source
        self._captions = read_captions(
            captions_file, source.example_ids, captions_format, caption_column
        )
        left_out = source.provenance.left_out
        self.provenance = Provenance(captions_file.name, left_out=left_out)
        self.example_ids: Sequence[str] = source.example_ids
        self.labels = source.labels
        self.class_names: Sequence[str] = source.class_names
        self.caption_counts = np.array([len(c) for c in self._captions], np.int32)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        return self.source[index]._replace(captions=self._captions[index])

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Returns what else the source knows of an image."""
        return getattr(self.source, "metadata", lambda index: {})(index)


def write_captions(
    path: Path,
    entries: Iterable[tuple[str, Sequence[str]]],
    captions_format: str = "relative",
    root: str = "",
) -> None:
    """Writes a captions file, whole or not at all, one entry after the other.

    Args:
      path: parquet if it ends in `.parquet`, else JSON.
      entries: (id, captions) of each image.
      captions_format: "relative": by id. "dcr": as the original code reads it, JSON by
        the path of the image, which is `root` and the id.
    Raises:
      ValueError: for an unknown format, "dcr" as parquet, or a root without "dcr".
    """
    is_parquet = path.suffix == ".parquet"
    if captions_format not in CAPTIONS_FORMATS[1:]:
        raise ValueError(f"a captions file is relative or dcr, not {captions_format!r}")
    if captions_format == "dcr" and is_parquet:
        raise ValueError(f"{path}: the original code reads JSON, name it .json")
    if captions_format == "relative" and root:
        raise ValueError(f"root={root!r} needs the format dcr: ids have none")
    prefix = root.rstrip("/") + "/" if root else ""
    renamed = ((prefix + example_id, captions) for example_id, captions in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(epath.Path(path)) as unfinished:
        (_write_parquet if is_parquet else _write_json)(unfinished, renamed)


def refuse(what: str, items: Iterable[str]) -> None:
    """Raises a `ValueError` that counts and lists the items, if there are any."""
    items = list(items)
    if items:
        raise ValueError(f"{len(items)} {what}: {listed(items)}")


def listed(items: Sequence[str]) -> str:
    """Names the first ten items, each quoted and safe to print."""
    more = ", ..." if len(items) > _NUM_LISTED else ""
    return ", ".join(map(repr, items[:_NUM_LISTED])) + more


def is_text(value: object) -> bool:
    """Tells whether a value is a string that can be written to other files."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # A lone surrogate.
        return False


def _match_paths(
    entries: Mapping[str, Any], example_ids: Sequence[str], captions_format: str
) -> dict[str, list[str]]:
    """Maps each path of a captions file to the images that it may mean."""
    known: dict[str, list[str]] = {}
    for example_id in example_ids:
        known.setdefault(_plain(example_id), []).append(example_id)
    exact = captions_format == "auto" and any(_plain(key) in known for key in entries)
    if captions_format == "relative" or exact:
        return {path: known.get(_plain(path), []) for path in entries}
    by_suffix: dict[str, list[str]] = {}
    for example_id in example_ids:
        name = _plain(example_id)
        for suffix in {name, PurePosixPath(name).name}:
            by_suffix.setdefault(suffix, []).append(example_id)
    matches = {}
    for path in entries:
        parts = _plain(path).split("/")
        # Ids of folders have at most two parts, class and file.
        suffixes = ("/".join(parts[-2:]), parts[-1])
        matches[path] = next((by_suffix[s] for s in suffixes if s in by_suffix), [])
    return matches


def _plain(path: str) -> str:
    """Writes a path as other systems do: Windows has backslashes, macOS splits accents."""
    slashes = path.replace("\\", "/").removeprefix("./")
    return unicodedata.normalize("NFC", slashes)


def _write_json(path: epath.Path, entries: Iterable[tuple[str, Sequence[str]]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        for number, (key, captions) in enumerate(entries):
            texts = json.dumps(list(captions), ensure_ascii=False)
            comma = "," if number else ""
            file.write(f"{comma}\n{json.dumps(key, ensure_ascii=False)}: {texts}")
        file.write("\n}\n")


def _write_parquet(
    path: epath.Path, entries: Iterable[tuple[str, Sequence[str]]]
) -> None:
    rows = iter(entries)
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
            ids, captions = zip(*group, strict=True)
            writer.write_table(pa.table([ids, captions], schema=_SCHEMA))


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _has_blank(captions: list[str]) -> bool:
    return any(not caption.strip() for caption in captions)
