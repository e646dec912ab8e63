"""Captions files of every format that people have: image path -> its captions.

In: JSON (an object, or a list of rows, or COCO's annotations), JSON lines, CSV, TSV or
parquet. Out: the captions by the path that the file itself gives, neither checked against
the images nor opened. A row may hold one caption or several, and an image have several
rows. Which columns are meant is decided here, for tables of Hugging Face, too.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from copymit.data.texts import decode_text, split_lines

_CAPTION_COLUMNS = ("captions", "caption", "text", "txt", "prompt", "sentences")
# Inside of a struct also: what Karpathy's splits and translations have.
_CAPTION_FIELDS = (*_CAPTION_COLUMNS, "raw", "sentence", "value")
_PATH_COLUMNS = (
    *("file_name", "filename", "file", "image_path", "path", "filepath", "image"),
    *("example_id", "image_id"),
)
_SPLIT_COLUMN = "split"
_LAYOUT = (
    "it must be one object, image path -> list of captions, or rows with the columns "
    "file_name and caption"
)
_WAY_OUT = "say which with --caption_column of python -m copymit.data.prepare"


class CaptionTable(NamedTuple):
    """The captions of a file.

    Attributes:
      entries: by path, as the file has it; an entry that is no list of texts is kept as
        it is, for whoever lists all faults.
      splits: of the paths that have one.
    """

    entries: dict[str, Any]
    splits: dict[str, str]


class MissingColumnError(ValueError):
    """A table has no column of captions."""


def read_caption_table(path: Path, column: str = "") -> CaptionTable:
    """Reads a captions file, by its suffix.

    Args:
      column: of the captions in rows, or several, joined by commas; "" takes the one of a
        usual name, or the ones that are numbered (`caption_0`, `caption_1`).
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not what its suffix says, a path occurs twice in an object, or
        it cannot be told which columns are meant.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {str(path)!r}")
    where = f"captions file {str(path)!r}"
    read = _READERS.get(path.suffix.lower())
    if read is None:
        known = ", ".join(_READERS)
        raise ValueError(f"{where} has an unknown suffix: use one of {known}")
    found = read(path, where)
    if isinstance(found, Mapping):
        return CaptionTable(
            {key: _kept_or_texts(value) for key, value in found.items()}, {}
        )
    return _group_rows(found, column, where)


def choose_caption_columns(names: Sequence[str], asked: str, where: str) -> list[str]:
    """Returns the columns that hold captions, in their order.

    Args:
      asked: names, joined by commas; "" if nobody said.
    Raises:
      MissingColumnError: if there is none that could be.
      ValueError: if there are several, or one that was asked for is absent; lists all.
    """
    there = f"{where} has the columns {', '.join(names)}"
    if asked:
        columns = [name.strip() for name in asked.split(",")]
        absent = [name for name in columns if name not in names]
        if absent:
            raise ValueError(f"{there}, but not {', '.join(absent)}: {_WAY_OUT}")
        return columns
    usual = [name for name in names if name.lower() in _CAPTION_COLUMNS]
    family = "|".join(_CAPTION_COLUMNS)
    numbers = {
        name: int(match[1])
        for name in names
        if (match := re.fullmatch(rf"(?:{family})_?(\d+)", name, re.IGNORECASE))
    }
    numbered = sorted(numbers, key=lambda name: numbers[name])
    if not usual and not numbered:
        raise MissingColumnError(
            f"{there}, but none of {', '.join(_CAPTION_COLUMNS)}: {_WAY_OUT}"
        )
    if len(usual) > 1:
        # img2dataset writes its caption twice, once as the text of the .txt.
        usual = [name for name in usual if name != "txt"]
    if len(usual) + bool(numbered) > 1:
        raise ValueError(
            f"{there}, of which {', '.join([*usual, *numbered])} may be captions: "
            f"{_WAY_OUT}"
        )
    return usual or numbered


def texts_of(value: object) -> list[str] | None:
    """Returns the captions in a cell: a text, a list, a struct, or lists of those.

    None if it holds anything else; an empty cell has none.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        fields = [name for name in value if str(name).lower() in _CAPTION_FIELDS]
        return texts_of(value[fields[0]]) if len(fields) == 1 else None
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        return None
    parts = [texts_of(item) for item in value if item is not None]
    if len(parts) < len(value) or any(part is None for part in parts):
        return None
    return [text for part in parts for text in part or ()]


def _kept_or_texts(value: object) -> Any:
    texts = texts_of(value)
    return value if texts is None else texts


def _group_rows(rows: Iterable[Any], column: str, where: str) -> CaptionTable:
    """Joins the rows of each image."""
    entries: dict[str, Any] = {}
    splits: dict[str, str] = {}
    names: list[str] | None = None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}, row {number} is not an object: {_LAYOUT}")
        if names is None:
            names = list(row)
            path_column = _path_column(names, where)
            columns = choose_caption_columns(
                [name for name in names if name != path_column], column, where
            )
        key = row.get(path_column)
        if not isinstance(key, str) or not key:
            raise ValueError(f"{where}, row {number} has no {path_column}")
        texts = _kept_or_texts([t for t in map(row.get, columns) if t is not None])
        before = entries.get(key, [])
        is_good = isinstance(texts, list) and isinstance(before, list)
        entries[key] = before + texts if is_good else texts
        if isinstance(row.get(_SPLIT_COLUMN), str):
            splits[key] = row[_SPLIT_COLUMN]
    return CaptionTable(entries, splits)


def _path_column(names: Sequence[str], where: str) -> str:
    by_lower = {name.lower(): name for name in reversed(names)}
    found = next((by_lower[name] for name in _PATH_COLUMNS if name in by_lower), None)
    if found is None:
        raise ValueError(
            f"{where} has the columns {', '.join(names)}, but none that names the image: "
            f"call it {_PATH_COLUMNS[0]}"
        )
    return found


def _read_json(path: Path, where: str) -> Any:
    repeated: list[str] = []

    def keep_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        entries = json.loads(
            decode_text(path.read_bytes(), where), object_pairs_hook=keep_pairs
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): {_LAYOUT}") from error
    if isinstance(entries, dict) and {"images", "annotations"} <= set(entries):
        return _coco_rows(entries, where)
    if isinstance(entries, dict) and isinstance(entries.get("images"), list):
        entries = entries["images"]  # Karpathy's splits of Flickr and COCO
    if not isinstance(entries, dict | list) or entries == []:
        raise ValueError(f"{where} holds a {type(entries).__name__}: {_LAYOUT}")
    if repeated and isinstance(entries, dict):
        raise ValueError(
            f"{len(repeated)} paths occur more than once in {where}: "
            + ", ".join(map(repr, repeated[:10]))
        )
    return entries


def _coco_rows(entries: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Joins images and annotations, as COCO keeps its captions."""
    try:
        names = {image["id"]: image["file_name"] for image in entries["images"]}
        return [
            {"file_name": names[note["image_id"]], "caption": note["caption"]}
            for note in entries["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where} looks like COCO's annotations, but {error} is missing"
        ) from error


def _read_json_lines(path: Path, where: str) -> list[Any]:
    rows = []
    text = decode_text(path.read_bytes(), where)
    for number, line in enumerate(split_lines(text), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}, line {number} is not JSON: {error}") from error
    return rows


def _read_delimited(path: Path, where: str) -> list[dict[str, Any]]:
    text = decode_text(path.read_bytes(), where)
    header = text.partition("\n")[0]
    if path.suffix.lower() == ".txt" and re.match(r"\S+\.\w+#\d+\t", header):
        # Flickr8k.token.txt: no header, and the caption's number after the file's name.
        lines = (line.partition("\t") for line in split_lines(text))
        return [{"file_name": k.rpartition("#")[0], "caption": v} for k, _, v in lines]
    delimiter = "\t" if "\t" in header else ","
    # newline="" leaves the ends of lines inside quotes to the reader.
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True
    )
    try:
        rows: list[dict[str, Any]] = list(reader)
    except csv.Error as error:
        raise ValueError(f"{where}, line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(
                f"{where}, row {number} has not as many cells as the header: put "
                "captions with commas between quotes"
            )
    return [{k: v or None for k, v in row.items()} for row in rows]


def _read_parquet(path: Path, where: str) -> list[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            # What lies in the table as bytes, such as the images, is not wanted here.
            names = [
                field.name
                for field in file.schema_arrow
                if not pa.types.is_binary(field.type)
            ]
            return file.read(columns=names).to_pylist()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"{where} cannot be read ({error})") from error


_READERS: dict[str, Callable[[Path, str], Any]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".txt": _read_delimited,
    ".parquet": _read_parquet,
}
