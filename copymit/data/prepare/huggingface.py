"""Data sets of Hugging Face on disk, read as the tables that they are.

In: a folder that `save_to_disk` wrote (`.arrow` files) or a copy of a repository
(`.parquet` files). Out: an `ExampleSource`. Needs pyarrow alone; nothing that a data set
brings along is executed, and paths inside it are never opened.
"""

import bisect
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copymit.data.captions_file import is_text, listed
from copymit.data.examples import Example

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "TEXT")
_ID_COLUMNS = ("example_id", "id", "__key__", "key")
_LABEL_COLUMNS = ("label", "labels", "class")
_CACHED_GROUPS = 2


class HuggingfaceSource:
    """The rows of a data set with the columns image and caption, captions or text.

    Ids come from a column `example_id`, `id`, `__key__` or `key`, or else are the
    numbers of the rows. Classes come from a column `label` that the data set declares
    as such. Other columns of numbers and texts are its metadata.

    Args:
      split: which of several splits to read.
      image_column, caption_column: names, if they are others.
    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if there are no tables, a column is missing or of another kind, or a
        table is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        split: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
    ):
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}")
        paths = _find_tables(root, split)
        self._groups = [group for path in paths for group in _open_groups(path)]
        self._starts = [0]
        for group in self._groups:
            self._starts.append(self._starts[-1] + len(group))
        schema = self._groups[0].schema if self._groups else pa.schema([])
        if not self._starts[-1]:
            raise ValueError(f"no rows in {str(folder)!r}")
        where = f"{str(folder)!r} has columns {', '.join(schema.names)}"
        self._image = _column(schema, image_column, _IMAGE_COLUMNS, where, "image")
        self._caption = _column(
            schema, caption_column, _CAPTION_COLUMNS, where, "caption"
        )
        id_column = next((name for name in _ID_COLUMNS if name in schema.names), None)
        self.class_names: Sequence[str]
        self.class_names, label = _classes(schema)
        # Read by columns: images are left where they are.
        wanted = [name for name in (id_column, label, self._caption) if name]
        light = pa.concat_tables([group.columns(wanted) for group in self._groups])
        self.example_ids: Sequence[str] = (
            [str(value) for value in light[id_column].to_pylist()]
            if id_column
            else [f"{row:08d}" for row in range(len(light))]
        )
        self.labels = np.full(len(light), -1, np.int32)
        if label:
            self.labels = _labels(light[label], len(self.class_names))
        counts = [_count_captions(value) for value in light[self._caption]]
        self.caption_counts = np.array(counts, np.int32)
        self._ignored = {self._image, self._caption, id_column, label}
        # One group is read by neighbouring rows; its columns are decoded once.
        self._rows = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: int) -> Example:
        row = self._row(index)
        image = row[self._image].as_py()
        if isinstance(image, Mapping):
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise ValueError(
                "its image is not inside the table; embed it with "
                "datasets.Image(decode=False) and the files' bytes"
            )
        captions = _captions(row[self._caption].as_py())
        label = int(self.labels[index])
        return Example(
            self.example_ids[index], image, captions, label if label >= 0 else None
        )

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Returns the numbers and texts of the other columns."""
        row = self._row(index)
        return {
            name: value.as_py()
            for name, value in row.items()
            if name not in self._ignored and not pa.types.is_nested(value.type)
        }

    def _row(self, index: int) -> dict[str, pa.Scalar]:
        number = bisect.bisect_right(self._starts, index) - 1
        table = self._rows(number)
        position = index - self._starts[number]
        return {name: table[name][position] for name in table.column_names}

    def _read_group(self, number: int) -> pa.Table:
        return self._groups[number].columns(None)


class _Group(Protocol):
    """Rows that are read together."""

    schema: pa.Schema

    def __len__(self) -> int: ...

    def columns(self, names: Sequence[str] | None) -> pa.Table: ...


class _Batch:
    """A batch of an `.arrow` file, which is mapped into memory."""

    def __init__(self, batch: pa.RecordBatch):
        self.schema = batch.schema
        self._table = pa.Table.from_batches([batch])

    def __len__(self) -> int:
        return len(self._table)

    def columns(self, names: Sequence[str] | None) -> pa.Table:
        return self._table if names is None else self._table.select(names)


class _RowGroup:
    """A row group of a `.parquet` file."""

    def __init__(self, path: Path, schema: pa.Schema, number: int, length: int):
        self.schema = schema
        self._path, self._number, self._length = path, number, length

    def __len__(self) -> int:
        return self._length

    def columns(self, names: Sequence[str] | None) -> pa.Table:
        columns = None if names is None else list(names)
        with pq.ParquetFile(self._path) as file:
            table = file.read_row_group(self._number, columns=columns)
        return table if columns is None else table.select(columns)


def _find_tables(root: Path, split: str | None) -> list[Path]:
    tables = sorted(
        path
        for suffix in ("arrow", "parquet")
        for path in root.rglob(f"*.{suffix}")
        # datasets keeps the results of map() and filter() beside the data.
        if path.is_file() and not path.name.startswith(("cache-", "tmp", "."))
    )
    by_split: dict[str, list[Path]] = {}
    for path in tables:
        by_split.setdefault(_split_of(path), []).append(path)
    if split is not None and split not in by_split:
        raise ValueError(
            f"no split {split!r} in {str(root)!r}; there are: {listed(sorted(by_split))}"
        )
    if split is None and len(by_split) > 1:
        raise ValueError(
            f"{str(root)!r} has the splits {listed(sorted(by_split))}: choose one "
            "with --split"
        )
    if not tables:
        raise ValueError(
            f"no .arrow or .parquet files in {str(root)!r}: give a folder that "
            "save_to_disk wrote, or a copy of the data set's repository"
        )
    return by_split[split] if split else tables


def _split_of(table: Path) -> str:
    """Names a table's split: train-00000-of-00002, train/data-00000-..., train/0000."""
    name = table.stem.partition("-")[0]
    return table.parent.name if name == "data" or name.isdigit() else name


def _open_groups(path: Path) -> Iterator[_Group]:
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                lengths = [
                    file.metadata.row_group(i).num_rows
                    for i in range(file.num_row_groups)
                ]
            for number, length in enumerate(lengths):
                yield _RowGroup(path, schema, number, length)
        else:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
                yield from map(_Batch, stream)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error


def _column(
    schema: pa.Schema, asked: str | None, usual: Sequence[str], where: str, what: str
) -> str:
    names = usual if asked is None else (asked,)
    found = next((name for name in names if name in schema.names), None)
    if found is None:
        raise ValueError(
            f"{where}, but none of {', '.join(names)}: say with --{what}_column"
        )
    return found


def _classes(schema: pa.Schema) -> tuple[tuple[str, ...], str | None]:
    """Reads the names of the classes, as `datasets` keeps them beside the columns."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        features = described["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return (), None
    for column in _LABEL_COLUMNS:
        feature = features.get(column)
        if column in schema.names and isinstance(feature, dict) and "names" in feature:
            names = feature["names"]
            if not isinstance(names, list) or not all(map(is_text, names)):
                raise ValueError(f"the class names of column {column!r} are no texts")
            return tuple(names), column
    return (), None


def _labels(column: pa.ChunkedArray, num_classes: int) -> np.ndarray:
    labels = column.fill_null(-1).to_numpy().astype(np.int64)
    wrong = labels[(labels < -1) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} labels are not among the {num_classes} classes, "
            f"such as {wrong[0]}"
        )
    return labels.astype(np.int32)


def _captions(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text.strip())


def _count_captions(value: pa.Scalar) -> int:
    try:
        return len(_captions(value.as_py()))
    except UnicodeDecodeError:  # Told when the example itself is read.
        return 0
