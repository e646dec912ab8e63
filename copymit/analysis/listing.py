"""One pass over a source: what every file and every picture is, and which are broken.

A source enters; a table leaves with a row for each example: its caption, its size, a
hash of its file and one of its decoded pixels. Parts of the table lie on disk and are
not made again as long as the source has not changed.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from copymit.data.captions_file import listed
from copymit.data.examples import ExampleSource
from copymit.data.images import ImageError, decode_image
from copymit.embedding.embed import pixel_digest
from copymit.embedding.store import listing_digest
from copymit.progress import Progress
from copymit.storage import write_whole

logger = logging.getLogger(__name__)

_PART_ROWS = 4096  # examples between two writes: what a kill can lose
_TASK_ROWS = 32
_SCHEMA = {
    "example_id": pa.string(),
    "caption": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "file_digest": pa.string(),
    "pixel_digest": pa.string(),
    "fault": pa.string(),
}


def list_examples(
    source: ExampleSource, folder: epath.Path, fingerprint: str | None
) -> pd.DataFrame:
    """Reads and hashes every example.

    Args:
      folder: receives the parts; made if absent.
      fingerprint: changes when the source's files do; None reads all of them again.
    Returns:
      Columns example_id, caption (the first one), width, height, file_digest,
      pixel_digest (sha256, hexadecimal) and fault: why an image cannot be read, or "".
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    count = len(source)
    progress = Progress("read and hashed", count)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, count, _PART_ROWS):
            rows = range(start, min(start + _PART_ROWS, count))
            ids = [source.example_ids[row] for row in rows]
            path = folder / f"{start // _PART_ROWS:05d}.parquet"
            about = {"listing": listing_digest(ids), "source": fingerprint or ""}
            part = _read_part(path, about) if fingerprint else None
            if part is None:
                part = pa.table(_read_rows(source, rows, pool), pa.schema(_SCHEMA))
                _write_part(path, part.replace_schema_metadata(about))
            parts.append(part)
            progress.add(len(rows))
    return pa.concat_tables(parts).to_pandas()


def readable_rows(table: pd.DataFrame, on_corrupt: str) -> pd.DataFrame:
    """Leaves out the images that cannot be read, or stops because of them.

    Raises:
      ValueError: if `on_corrupt` is "stop" and images cannot be read; names the first.
    """
    broken = table[table["fault"] != ""]
    if len(broken) and on_corrupt == "stop":
        named = listed([f"{i} {f}" for i, f in _faults(broken)])
        raise ValueError(
            f"{len(broken)} of {len(table)} images cannot be read: {named}: repair or "
            "remove them, or leave them out with --on_corrupt=skip"
        )
    if len(broken):
        logger.warning("%d of %d images cannot be read", len(broken), len(table))
    return table[table["fault"] == ""]


def list_faults(table: pd.DataFrame) -> dict[str, str]:
    """Maps the images that cannot be read to why."""
    return dict(_faults(table[table["fault"] != ""]))


def _faults(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return zip(table["example_id"], table["fault"], strict=True)


def _read_rows(
    source: ExampleSource, rows: range, pool: ThreadPoolExecutor
) -> dict[str, list[Any]]:
    tasks = [rows[i : i + _TASK_ROWS] for i in range(0, len(rows), _TASK_ROWS)]
    read = pool.map(lambda task: [_describe(source, row) for row in task], tasks)
    described = [row for task in read for row in task]
    return {name: [row[name] for row in described] for name in _SCHEMA}


def _describe(source: ExampleSource, row: int) -> dict[str, Any]:
    """Describes one example; an image that cannot be read has only a fault."""
    example_id = source.example_ids[row]
    found: dict[str, Any] = {"example_id": example_id, "caption": "", "fault": ""}
    found |= {"width": 0, "height": 0, "file_digest": "", "pixel_digest": ""}
    try:
        example = source[row]
        found["caption"] = _as_text("".join(example.captions[:1]))
        found["file_digest"] = hashlib.sha256(example.image).hexdigest()
        pixels = np.asarray(decode_image(example.image, example_id))
    except ImageError as error:
        return found | {"fault": error.reason}
    except OSError as error:
        return found | {"fault": f"cannot be read ({error})"}
    height, width = pixels.shape[:2]
    digest = pixel_digest(pixels).hex()
    return found | {"width": width, "height": height, "pixel_digest": digest}


def _as_text(caption: str) -> str:
    """Is a caption that every file can hold: JSON may have halves of characters."""
    return caption.encode("utf-8", "backslashreplace").decode()


def _read_part(path: epath.Path, about: dict[str, str]) -> pa.Table | None:
    """Reads a part if it is there and about the same files."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        table = pq.read_table(file)
    metadata = table.schema.metadata or {}
    if {k.decode(): v.decode() for k, v in metadata.items()} != about:
        return None
    return table


def _write_part(path: epath.Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(path, buffer.getvalue())


def fingerprint_files(paths: list[str]) -> str:
    """Hashes the names, sizes and times of files, which change when the files do."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        entry = [path, status.st_size, status.st_mtime_ns]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
