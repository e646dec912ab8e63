"""Data sets of Hugging Face on disk, read as the tables that they are.

In: a folder that `save_to_disk` wrote (`.arrow` files) or a copy of a repository
(`.parquet` files). Out: an `ExampleSource`. Needs pyarrow alone; nothing that a data set
brings along is executed, and paths inside it are never opened.
"""

import bisect
import functools
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from copymit.data.caption_tables import (
    MissingColumnError,
    choose_caption_columns,
    texts_of,
)
from copymit.data.captions_file import is_text, listed
from copymit.data.examples import Example, Provenance
from copymit.data.folder_listing import SPLIT_NAMES

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_ID_COLUMNS = (
    *(
        "example_id",
        "image_id",
        "img_id",
        "__key__",
        "key",
        "filename",
        "file_name",
        "id",
    ),
)
# Of img2dataset's parquet files, which also list what could not be downloaded.
_DOWNLOAD_COLUMNS = ("url", "key", "status", "error_message")
_LABEL_COLUMNS = ("label", "labels", "class")
_CACHED_GROUPS = 2


class HuggingfaceSource:
    """The images of a data set with the columns image and caption, captions or text.

    Ids come from a column `example_id`, `image_id`, `filename`, `id`, ..., or else are
    the numbers of the rows. Rows with the same id are one image with several captions, if
    they hold the same image; rows that img2dataset could not download are left out.
    Classes come from a column `label` that the data set declares
    as such. Other columns of numbers and texts are its metadata.

    Args:
      split: which of several splits to read.
      image_column: its name, if it is another.
      caption_column: the same, or several, joined by commas, see
        `choose_caption_columns`; "none" reads no captions.
      id_column: the same; "row" numbers the rows.
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
        caption_column: str = "",
        id_column: str | None = None,
    ):
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}")
        paths = _find_tables(root, split)
        _warn_of_missing_parts(paths, root)
        self._groups = [group for path in paths for group in _open_groups(path)]
        self._starts = [0]
        for group in self._groups:
            self._starts.append(self._starts[-1] + len(group))
        schema = self._groups[0].schema if self._groups else pa.schema([])
        if not self._starts[-1]:
            raise ValueError(f"no rows in {str(folder)!r}")
        where = f"{str(folder)!r} has columns {', '.join(schema.names)}"
        self._image = _column(schema, image_column, _IMAGE_COLUMNS, where, "image")
        id_column = _id_column(schema, id_column, where)
        self.class_names: Sequence[str]
        self.class_names, label = _classes(schema)
        self._captions = _caption_columns(
            schema, caption_column, {self._image, id_column, label}, where
        )
        is_download = {*_DOWNLOAD_COLUMNS} <= {*schema.names}
        # Read by columns: images are left where they are.
        wanted = [name for name in (id_column, label, *self._captions) if name]
        wanted += ["status"] * is_download
        _check_columns(self._groups, [self._image, *wanted])
        light = _read_light(self._groups, wanted)
        ids = _name_rows(light, self._groups, id_column, with_shards=is_download)
        status = light["status"].to_pylist() if is_download else ["success"] * len(ids)
        self.provenance = Provenance(
            ", ".join(f"column {name}" for name in self._captions),
            left_out=[
                name
                for name, what in zip(ids, status, strict=True)
                if what != "success"
            ],
        )
        self._rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(ids):
            if status[row] == "success":
                self._rows_of.setdefault(name, []).append(row)
        self.example_ids: Sequence[str] = list(self._rows_of)
        firsts = [rows[0] for rows in self._rows_of.values()]
        self.labels = np.full(len(firsts), -1, np.int32)
        if label:
            self.labels = _labels(light[label], len(self.class_names))[firsts]
        counts = _count_captions([light[name] for name in self._captions], len(ids))
        self.caption_counts = np.array(
            [sum(counts[row] for row in rows) for rows in self._rows_of.values()],
            np.int32,
        )
        self._ignored = {self._image, *self._captions, id_column, label}
        # One group is read by neighbouring rows; its columns are decoded once.
        self._table = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: int) -> Example:
        example_id = self.example_ids[index]
        numbers = self._rows_of[example_id]
        rows = [self._row(number) for number in numbers]
        images = [_image_bytes(row[self._image].as_py()) for row in rows]
        if any(image != images[0] for image in images):
            raise ValueError(
                f"rows {numbers[0]} and others have its id, but hold different images: "
                "name the column of ids with --id_column, or number rows with "
                "--id_column=row"
            )
        captions = [
            text for row in rows for text in _texts([row[n] for n in self._captions])
        ]
        label = int(self.labels[index])
        return Example(
            example_id, images[0], tuple(captions), label if label >= 0 else None
        )

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Returns the numbers and texts of the other columns."""
        row = self._row(self._rows_of[self.example_ids[index]][0])
        return {
            name: value.as_py()
            for name, value in row.items()
            if name not in self._ignored and not pa.types.is_nested(value.type)
        }

    def _row(self, row: int) -> dict[str, pa.Scalar]:
        number = bisect.bisect_right(self._starts, row) - 1
        table = self._table(number)
        position = row - self._starts[number]
        return {name: table[name][position] for name in table.column_names}

    def _read_group(self, number: int) -> pa.Table:
        return self._groups[number].columns(None)


class _Group(Protocol):
    """Rows that are read together."""

    schema: pa.Schema
    path: Path

    def __len__(self) -> int: ...

    def columns(self, names: Sequence[str] | None) -> pa.Table: ...


class _Batch:
    """A batch of an `.arrow` file, which is mapped into memory."""

    def __init__(self, path: Path, batch: pa.RecordBatch):
        self.schema, self.path = batch.schema, path
        self._table = pa.Table.from_batches([batch])

    def __len__(self) -> int:
        return len(self._table)

    def columns(self, names: Sequence[str] | None) -> pa.Table:
        return self._table if names is None else self._table.select(names)


class _RowGroup:
    """A row group of a `.parquet` file."""

    def __init__(self, path: Path, schema: pa.Schema, number: int, length: int):
        self.schema, self.path = schema, path
        self._number, self._length = number, length

    def __len__(self) -> int:
        return self._length

    def columns(self, names: Sequence[str] | None) -> pa.Table:
        columns = None if names is None else list(names)
        with pq.ParquetFile(self.path) as file:
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
        by_split.setdefault(_split_of(path, root), []).append(path)
    if split is not None and split not in by_split:
        raise ValueError(
            f"no split {split!r} in {str(root)!r}; there are: {listed(sorted(by_split))}"
        )
    if split is None and len(by_split) > 1:
        raise ValueError(
            f"{str(root)!r} has the splits {listed(sorted(by_split))}: choose one "
            "with --split"
            + (f", or remove {by_split[''][0]}" if "" in by_split else "")
        )
    if not tables:
        raise ValueError(
            f"no .arrow or .parquet files in {str(root)!r}: give a folder that "
            "save_to_disk wrote, or a copy of the data set's repository"
        )
    return by_split[split] if split else tables


def _split_of(table: Path, root: Path) -> str:
    """Names a table's split; "" if it has none.

    As repositories have it (`train-00000-of-00002`, `train/0000`), `save_to_disk`
    (`train/data-00000-of-00001`) and the cache of `datasets` (`flickr-train`,
    `flickr-train-00000-of-00002`). Numbers alone (`chunk_0`, `part-3`) are no splits.
    """
    name, numbered = re.subn(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", table.stem)
    last = name.rpartition("-")[2]
    if last in SPLIT_NAMES:
        return last
    if numbered and name != "data":
        return last
    above = table.parent.name if table.parent != root else ""
    # A folder of save_to_disk may have any name, and so may a repository's of numbers.
    is_split = (table.parent / "state.json").is_file() or name.isdigit() or numbered
    return above if above in SPLIT_NAMES or is_split else ""


def _warn_of_missing_parts(paths: Sequence[Path], root: Path) -> None:
    """Compares the files with how many there are by their names: 00000-of-00002."""
    matches = [re.search(r"-(\d+)-of-(\d+)", path.stem) for path in paths]
    totals = {int(match[2]) for match in matches if match}
    if len(totals) == 1 and len(paths) < (total := totals.pop()):
        logger.warning("%s: %d of its %d files are there", root, len(paths), total)


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
                yield from (_Batch(path, batch) for batch in stream)
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


def _name_rows(
    light: pa.Table,
    groups: Sequence[_Group],
    id_column: str | None,
    *,
    with_shards: bool,
) -> list[str]:
    """Returns the id of each row, which several may share.

    Args:
      with_shards: puts the file's name before it, as in img2dataset's other formats.
    """
    if not id_column:
        return [f"{row:08d}" for row in range(sum(map(len, groups)))]
    column = light[id_column]
    if column.null_count:
        raise ValueError(
            f"column {id_column} has {column.null_count} empty cells, which name no image: "
            "give another --id_column, or number the rows with --id_column=row"
        )
    ids = [str(value) for value in column.to_pylist()]
    if not with_shards:
        return ids
    shards = [group.path.stem for group in groups for _ in range(len(group))]
    return [f"{shard}/{name}" for shard, name in zip(shards, ids, strict=True)]


def _id_column(schema: pa.Schema, asked: str | None, where: str) -> str | None:
    if asked == "row":
        return None
    if asked is not None:
        return _column(schema, asked, (), where, "id")
    return next((name for name in _ID_COLUMNS if name in schema.names), None)


def _caption_columns(
    schema: pa.Schema, asked: str, others: set[str | None], where: str
) -> list[str]:
    """Returns the columns of captions; none if no column could be one."""
    if asked == "none":
        return []
    names = [name for name in schema.names if name not in others]
    try:
        return choose_caption_columns(names, asked, where.partition(" has ")[0])
    except MissingColumnError as error:
        if any(_is_text(schema.field(name).type) for name in names):
            raise ValueError(f"{error}, or none") from error
        return []


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _check_columns(groups: Sequence[_Group], names: Sequence[str]) -> None:
    for group in groups:
        absent = [name for name in names if name not in group.schema.names]
        if absent:
            raise ValueError(
                f"{group.path} has no column {listed(absent)}, which the other files have: "
                "remove it, or name others with --image_column, --caption_column"
            )


def _read_light(groups: Sequence[_Group], names: Sequence[str]) -> pa.Table:
    """Reads some columns of all rows, of whatever kind of text each file has."""
    parts = [group.columns(names).replace_schema_metadata() for group in groups]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        kinds = {
            str(g.path): [str(g.schema.field(n).type) for n in names] for g in groups
        }
        raise ValueError(
            f"columns {listed(names)} are of several kinds: {kinds}: {error}"
        ) from error


def _image_bytes(image: object) -> bytes:
    if isinstance(image, Mapping):
        image = image.get("bytes")
    if not isinstance(image, bytes):
        raise ValueError(
            "its image is not inside the table; embed it with "
            "datasets.Image(decode=False) and the files' bytes"
        )
    return image


def _texts(cells: Sequence[pa.Scalar]) -> tuple[str, ...]:
    """Returns the captions in the cells of a row, without blank ones."""
    texts = texts_of([v for v in (cell.as_py() for cell in cells) if v is not None])
    if texts is None:
        raise ValueError("its caption is neither a text nor texts")
    return tuple(text for text in texts if text.strip())


def _count_captions(columns: Sequence[pa.ChunkedArray], num_rows: int) -> list[int]:
    if not columns:
        return [0] * num_rows
    counts = []
    for cells in zip(*columns, strict=True):
        try:
            counts.append(len(_texts(cells)))
        except ValueError:  # Told when the example itself is read.
            counts.append(1)
    return counts
