"""The files of a prepared data set, each there whole or not at all.

In: shards of rows. Out: ArrayRecord files and an index, and beside them what makes
`tensorflow_datasets` read them. Works on `gs://` as on a disk.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from copymit.data.captions_file import refuse
from copymit.data.prepare.rows import INDEX_SCHEMA, Row
from copymit.data.prepare.selection import Cursor
from copymit.data.record_source import (
    CLASSES_FILE,
    FEATURES_FILE,
    INDEX_FILE,
    INFO_FILE,
    SETTINGS_FILE,
    shard_name,
)
from copymit.storage import is_remote, scratch_folder, write_whole

SKIPPED_FILE = "skipped.json"
PROGRESS_FOLDER = "incomplete"  # gone when the data set is whole
# One record in each group, as random access wants it; images are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_FEATURES = "tensorflow_datasets.core.features."

Skipped = tuple[str, str]  # (example id, reason)


class Shard(NamedTuple):
    """What is known of a shard that is written.

    Attributes:
      cursor: where the selection goes on after it.
      skipped: the examples that were passed over on the way.
    """

    length: int
    num_bytes: int
    cursor: Cursor
    skipped: list[Skipped]


def claim(folder: epath.Path, identity: Mapping[str, Any]) -> None:
    """Claims the folder for one data set, or checks that it was claimed for the same.

    Raises:
      ValueError: if it holds something else.
    """
    file = folder / SETTINGS_FILE
    if not file.exists():
        # What a kill left of this very file does not count.
        own = f"{file.name}.partial"
        if folder.exists() and any(path.name != own for path in folder.iterdir()):
            raise ValueError(f"{str(folder)!r} is not empty: give a new folder")
        write_json(file, identity)
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): give a new folder") from error
    differing = [k for k in identity if before.get(k) != identity[k]]
    refuse(
        f"settings differ from those that {str(folder)!r} was begun with (remove it, "
        "or give a new folder)",
        (f"{k}: {before.get(k)} there, {identity[k]} now" for k in differing),
    )


def write_shard(
    folder: epath.Path,
    number: int,
    rows: Sequence[Row],
    cursor: Cursor,
    skipped: Sequence[Skipped],
) -> Shard:
    """Writes records and then, as the sign that they are whole, their index.

    May run twice at a time for the same shard: each run has a name of its own for what
    is not whole yet.
    """
    partial = folder / PROGRESS_FOLDER / f"{uuid.uuid4().hex}.partial"
    with scratch_folder() as scratch:
        local = scratch / "records"
        writer = ArrayRecordWriter(str(local), _WRITER_OPTIONS)
        for row in rows:
            writer.write(row.record)
        writer.close()
        _write(folder / shard_name(number), local.read_bytes(), partial)
    shard = Shard(
        len(rows), sum(len(row.record) for row in rows), cursor, list(skipped)
    )
    schema = INDEX_SCHEMA.with_metadata({"shard": json.dumps(shard)})
    table = pa.Table.from_pylist([row.facts for row in rows], schema)
    _write(_progress_file(folder, number), _parquet(table), partial)
    return shard


def read_shards(folder: epath.Path) -> list[Shard]:
    """Reads what an interrupted run has finished."""
    shards: list[Shard] = []
    while (file := _progress_file(folder, len(shards))).exists():
        metadata = pq.read_schema(pa.BufferReader(file.read_bytes())).metadata
        length, num_bytes, cursor, skipped = json.loads(metadata[b"shard"])
        pairs = [(name, reason) for name, reason in skipped]
        shards.append(Shard(length, num_bytes, Cursor(*cursor), pairs))
    return shards


def finish(
    folder: epath.Path,
    shards: Sequence[Shard],
    skipped: Sequence[Skipped],
    class_names: Sequence[str],
) -> None:
    """Writes index and metadata; the last file is the sign that the set is whole."""
    parts = [
        pq.read_table(pa.BufferReader(_progress_file(folder, i).read_bytes()))
        for i in range(len(shards))
    ]
    index = pa.concat_tables(part.replace_schema_metadata() for part in parts)
    _write(folder / INDEX_FILE, _parquet(index))
    listing = [{"example_id": name, "reason": reason} for name, reason in skipped]
    write_json(folder / SKIPPED_FILE, listing)
    if class_names:
        _write(folder / CLASSES_FILE, "\n".join([*class_names, ""]).encode())
    write_json(folder / FEATURES_FILE, _features(len(class_names)))
    write_json(folder / INFO_FILE, _info(shards))
    clean_up(folder)


def clean_up(folder: epath.Path) -> None:
    """Removes what only an unfinished data set needs."""
    if (folder / PROGRESS_FOLDER).exists():
        (folder / PROGRESS_FOLDER).rmtree(missing_ok=True)


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole."""
    _write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _write(path: epath.Path, data: bytes, partial: epath.Path | None = None) -> None:
    partial = partial or path.parent / f"{path.name}.partial"
    if not is_remote(path):
        for parent in {path.parent, partial.parent}:
            parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data, partial)


def _progress_file(folder: epath.Path, number: int) -> epath.Path:
    return folder / PROGRESS_FOLDER / f"{number:05d}.parquet"


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _info(shards: Sequence[Shard]) -> dict[str, Any]:
    """Source: tensorflow_datasets/core/proto/dataset_info.proto."""
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        "name": "train",
        "numBytes": str(sum(shard.num_bytes for shard in shards)),
        "shardLengths": [str(shard.length) for shard in shards],
    }
    return {
        "description": "Images with captions, prepared by copymit.",
        "fileFormat": "array_record",
        "name": "copymit",
        "releaseNotes": {"1.0.0": "One record per image."},
        "splits": [split],
        "version": "1.0.0",
    }


def _features(num_classes: int) -> dict[str, Any]:
    """Source: tensorflow_datasets/core/proto/feature.proto."""

    def feature(module: str, name: str, key: str, value: dict) -> dict[str, Any]:
        return {"pythonClassName": f"{_FEATURES}{module}.{name}", key: value}

    text = feature("text_feature", "Text", "text", {})
    shape = {"dimensions": ["-1", "-1", "3"]}
    scalar = {"dtype": "int64", "encoding": "none", "shape": {}}
    features = {
        "captions": feature(
            "sequence_feature",
            "Sequence",
            "sequence",
            {"feature": text, "length": "-1"},
        ),
        "example_id": text,
        "image": feature(
            "image_feature", "Image", "image", {"dtype": "uint8", "shape": shape}
        ),
        # Without classes the label is -1, which is no class's number.
        "label": feature(
            "class_label_feature",
            "ClassLabel",
            "classLabel",
            {"numClasses": str(num_classes)},
        )
        if num_classes
        else feature("tensor_feature", "Tensor", "tensor", scalar),
    }
    return feature(
        "features_dict", "FeaturesDict", "featuresDict", {"features": features}
    )
