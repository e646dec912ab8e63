"""Prepared data sets, read at random, and what is wrong with damaged ones."""

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from copymit.data.examples import ExampleSource
from copymit.data.folder_source import FolderSource
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource, shard_name
from copymit.data.sources import load_source


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02d}.png")
    return FolderSource(folder)


@pytest.fixture
def prepared(images, tmp_path):
    write_data_set(images, tmp_path / "out", Settings(shard_bytes=500))
    return tmp_path / "out"


def test_it_is_a_source_with_random_access(prepared, images):
    source = RecordSource(prepared)
    assert isinstance(source, ExampleSource)
    assert len(source) == 20
    order = np.random.default_rng(0).permutation(20)
    assert [source[i] for i in order] == [images[i] for i in order]
    assert source[-1] == images[19]
    assert list(source.labels) == [-1] * 20
    with pytest.raises(IndexError):
        source[20]


def test_ids_are_a_sequence(prepared, images):
    ids = RecordSource(prepared).example_ids
    assert ids[3] == ids[np.int64(3)] == "03.png"
    assert ids[-2:] == ["18.png", "19.png"]
    assert tuple(ids) == tuple(images.example_ids)
    assert ids.index("07.png") == 7
    assert "nothing" not in ids


def test_threads_and_workers_can_share_it(prepared, images):
    source = RecordSource(prepared)
    indices = list(range(20)) * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, indices)) == [
            images[i] for i in indices
        ]
    assert pickle.loads(pickle.dumps(source))[11] == images[11]


def test_class_names_of_ones_own_are_refused(prepared):
    with pytest.raises(ValueError, match="has class names of its own"):
        load_source(str(prepared), class_names={"a": "b"})


def test_an_unfinished_data_set_is_named(prepared):
    (prepared / "dataset_info.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run python -m copymit.data.prepare"):
        load_source(str(prepared))


def test_a_missing_or_damaged_shard_is_named(prepared):
    path = prepared / shard_name(1)
    data = path.read_bytes()
    path.write_bytes(data[:100])
    last = len(RecordSource(prepared)) - 1
    with pytest.raises(ValueError, match=r"array_record-00001 is damaged"):
        [RecordSource(prepared)[i] for i in range(last)]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*array_record-00001"):
        [RecordSource(prepared)[i] for i in range(last)]


def test_a_flipped_bit_in_a_record_is_found(prepared):
    path = prepared / shard_name(0)
    data = bytearray(path.read_bytes())
    position = data.index(b"00.png")
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="array_record-00000: record 0"):
        RecordSource(prepared)[0]


def test_an_index_of_another_data_set_is_found(prepared):
    table = pq.read_table(prepared / "index.parquet")
    pq.write_table(table.slice(1), prepared / "index.parquet")
    with pytest.raises(ValueError, match=r"has 19 rows and dataset_info.json 20"):
        RecordSource(prepared)
    pq.write_table(table.take(list(range(20))[::-1]), prepared / "index.parquet")
    with pytest.raises(ValueError, match=r"is '00\.png', but index\.parquet says"):
        RecordSource(prepared)[0]
    (prepared / "index.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        RecordSource(prepared)


@pytest.mark.parametrize(
    "change", [{"splits": []}, {"splits": [{"shardLengths": ["0"]}]}]
)
def test_damaged_metadata_is_named(prepared, change):
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(ValueError, match=r"is not what copymit.data.prepare writes"):
        RecordSource(prepared)


def test_labels_without_a_class_are_refused(prepared):
    table = pq.read_table(prepared / "index.parquet")
    labels = pa.array([5] * 20, pa.int32())
    column = table.schema.get_field_index("label")
    pq.write_table(
        table.set_column(column, "label", labels), prepared / "index.parquet"
    )
    with pytest.raises(ValueError, match="labels up to 5"):
        RecordSource(prepared)


def test_a_large_index_opens_without_an_object_for_each_example(tmp_path):
    num_examples = 200_000
    numbers = np.arange(num_examples)
    index = {
        "example_id": [f"{i:012d}" for i in numbers],
        "label": np.full(num_examples, -1, np.int32),
        "caption_count": np.ones(num_examples, np.int32),
    }
    pq.write_table(pa.table(index), tmp_path / "index.parquet")
    (tmp_path / "prepare.json").write_text("{}")
    info = {"splits": [{"shardLengths": [str(num_examples)]}]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    before = pa.total_allocated_bytes()
    source = RecordSource(tmp_path)
    assert source.example_ids[123_456] == "000000123456"
    # Twelve letters and an offset each; a Python string alone has 61 bytes.
    # Arrow's threads may hold what they read for a moment longer.
    deadline = time.monotonic() + 20
    while pa.total_allocated_bytes() - before >= 40 * num_examples:
        assert time.monotonic() < deadline, pa.total_allocated_bytes() - before
        time.sleep(0.01)
