"""A prepared data set: images and captions in ArrayRecord files, read at random.

In: a folder, or a `gs://` one, that `python -m copymit.data.prepare` wrote. Out: an
`ExampleSource`, without tensorflow. `tensorflow_datasets` reads the same folder with
`tfds.builder_from_directory(path).as_data_source(split="train")`.
"""

import functools
import json
import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from copymit.data.examples import Example, Provenance
from copymit.data.texts import decode_text, split_lines
from copymit.data.tf_example import decode_example

SETTINGS_FILE = "prepare.json"  # the first that is written
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
INDEX_FILE = "index.parquet"
CLASSES_FILE = "label.labels.txt"

# Each open shard holds a file descriptor, of which a process has about a thousand.
_MAX_OPEN_SHARDS = 256
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 2**15


def shard_name(shard: int) -> str:
    """Names a file of records, as `tensorflow_datasets` finds it."""
    return f"copymit-train.array_record-{shard:05d}"


def is_begun(path: epath.PathLike) -> bool:
    """Tells whether a folder holds a prepared data set, be it whole or not."""
    return (epath.Path(path) / SETTINGS_FILE).exists()


def is_prepared(path: epath.PathLike) -> bool:
    """Tells whether a folder holds a prepared data set that is whole."""
    folder = epath.Path(path)
    # Hugging Face's data sets have a dataset_info.json, too.
    return is_begun(folder) and (folder / INFO_FILE).exists()


class RecordSource:
    """The examples of a prepared data set, in its order.

    Raises:
      FileNotFoundError: if there is no such data set, or a file of it is absent.
      ValueError: if its files do not belong together, also when an example is read.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        if not is_prepared(self.path):
            raise FileNotFoundError(
                f"no whole prepared data set in {str(path)!r}: run python -m "
                "copymit.data.prepare once more, it goes on where it stopped"
            )
        lengths = _shard_lengths(self.path)
        index = _read_index(self.path)
        self._ends = np.cumsum(lengths, dtype=np.int64)
        if len(lengths) == 0 or self._ends[-1] != len(index):
            raise ValueError(
                f"{self.path / INDEX_FILE} has {len(index)} rows and {INFO_FILE} "
                f"{sum(lengths)} examples: prepare the data set again"
            )
        self.example_ids: Sequence[str] = _Texts(index["example_id"])
        self.labels = index["label"].to_numpy().astype(np.int32)
        self.caption_counts = index["caption_count"].to_numpy().astype(np.int32)
        self.class_names: Sequence[str] = _read_classes(self.path)
        self.provenance = Provenance(f"the prepared data set {self.path.name}")
        if len(self.labels) and self.labels.max() >= len(self.class_names):
            raise ValueError(
                f"{self.path / INDEX_FILE} has labels up to {self.labels.max()}, but "
                f"{CLASSES_FILE} names {len(self.class_names)} classes: prepare the "
                "data set again"
            )
        self._open = functools.lru_cache(_MAX_OPEN_SHARDS)(self._open_shard)

    def __reduce__(self) -> tuple:
        # Readers cannot be sent to the workers of a pipeline; each opens its own.
        return RecordSource, (str(self.path),)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[shard - 1]) if shard else 0
        where = f"{self.path / shard_name(shard)}: record {index - start}"
        try:
            (record,) = self._open(shard).read([index - start])
            example = decode_example(record)
        except (ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"{where}: {error}") from error
        if example.example_id != self.example_ids[index]:
            raise ValueError(
                f"{where} is {example.example_id!r}, but {INDEX_FILE} says "
                f"{self.example_ids[index]!r}: prepare the data set again"
            )
        return example

    def check_files(self) -> None:
        """Raises a `FileNotFoundError` if a file of records is absent, by one listing."""
        there = {path.name for path in self.path.iterdir()}
        names = [shard_name(shard) for shard in range(len(self._ends))]
        if absent := [name for name in names if name not in there]:
            raise FileNotFoundError(
                f"{self.path} lacks {len(absent)} of its {len(names)} files of records "
                f"(first {absent[0]}): prepare the data set again"
            )

    def _open_shard(self, shard: int) -> ArrayRecordReader:
        path = self.path / shard_name(shard)
        if not path.exists():
            raise FileNotFoundError(f"no file {path}: prepare the data set again")
        reader = ArrayRecordReader(
            str(path),
            options=_READER_OPTIONS,
            file_reader_buffer_size=_READER_BUFFER_BYTES,
        )
        length = int(self._ends[shard] - (self._ends[shard - 1] if shard else 0))
        # A damaged file is opened without complaint and then has no records.
        if not reader.ok() or reader.num_records() != length:
            raise ValueError(
                f"{path} is damaged: it has {reader.num_records()} of {length} "
                "records; prepare the data set again"
            )
        return reader


class _Texts(Sequence[str]):
    """Texts in one block of memory, each made a Python object when it is asked for."""

    def __init__(self, column: pa.ChunkedArray):
        self._texts = pa.concat_arrays(column.cast(pa.large_string()).chunks)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._texts[i].as_py() for i in range(len(self))[index]]
        return self._texts[range(len(self))[index]].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts.to_pylist())


def _shard_lengths(path: epath.Path) -> list[int]:
    try:
        info = json.loads((path / INFO_FILE).read_text())
        (split,) = info["splits"]
        lengths = [int(length) for length in split["shardLengths"]]
        if min(lengths) < 1:
            raise ValueError("shards without examples")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / INFO_FILE} is not what copymit.data.prepare writes "
            f"({type(error).__name__}: {error}): prepare the data set again"
        ) from error
    return lengths


def _read_index(path: epath.Path) -> pa.Table:
    columns = ["example_id", "label", "caption_count"]
    try:
        with (path / INDEX_FILE).open("rb") as file:
            return pq.ParquetFile(file).read(columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path / INDEX_FILE} cannot be read ({error}): prepare the data set again"
        ) from error


def _read_classes(path: epath.Path) -> tuple[str, ...]:
    file = path / CLASSES_FILE
    if not file.exists():
        return ()
    return tuple(split_lines(decode_text(file.read_bytes(), str(file))))
