"""Hugging Face data sets on disk, as tables of either kind."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copymit.data.prepare.huggingface import HuggingfaceSource
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(noise, rows, **columns):
    """A table as `datasets` writes it, with two classes."""
    images = [{"bytes": noise(i), "path": f"/etc/{i}.png"} for i in rows]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    described = json.dumps({"info": {"features": features}})
    columns = {
        "text": [f"picture {i}" for i in rows],
        "label": pa.array([i % 2 for i in rows], pa.int64()),
        "similarity": [i / 10 for i in rows],
        **columns,
    }
    made = pa.table({"image": pa.array(images, IMAGE), **columns})
    return made.replace_schema_metadata({"huggingface": described})


def save(made, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=2)
        return
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, made.schema) as out,
    ):
        out.write_table(made, max_chunksize=2)


@pytest.mark.parametrize(
    "names",
    [
        ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
    ],
)
def test_rows_become_examples(tmp_path, noise, names):
    for part, name in enumerate(names):
        save(table(noise, range(3 * part, 3 * part + 3)), tmp_path / "hf" / name)
    (tmp_path / "hf" / "dataset_info.json").write_text("{}")
    source = HuggingfaceSource(tmp_path / "hf")
    write_data_set(source, tmp_path / "out", Settings())
    prepared = RecordSource(tmp_path / "out")
    assert list(prepared.example_ids) == [f"{i:08d}" for i in range(6)]
    assert prepared.class_names == ("cat", "dog")
    for i in range(6):
        example = prepared[i]
        assert example.image == noise(i)
        assert (example.captions, example.label) == ((f"picture {i}",), i % 2)
    index = pq.read_table(tmp_path / "out" / "index.parquet")
    assert index["similarity"].to_pylist() == [i / 10 for i in range(6)]


def test_several_captions_ids_and_bare_bytes_are_read(tmp_path, noise):
    captions = [["a", "b", "c"], ["d"]]
    made = pa.table(
        {
            "jpg": [noise(0), noise(1)],
            "captions": captions,
            "id": [7, 9],
            "text": ["x"] * 2,
        }
    )
    save(made, tmp_path / "train.parquet")
    source = HuggingfaceSource(tmp_path)
    assert list(source.example_ids) == ["7", "9"]
    assert list(source.caption_counts) == [3, 1]
    assert source[0].captions == ("a", "b", "c")
    assert (source[1].image, source[1].label) == (noise(1), None)
    named = HuggingfaceSource(tmp_path, caption_column="text")
    assert named[0].captions == ("x",)


def test_one_of_several_splits_must_be_chosen(tmp_path, noise):
    for split in ("train", "test"):
        save(table(noise, range(2)), tmp_path / split / "data-00000-of-00001.arrow")
    with pytest.raises(ValueError, match=r"has the splits 'test', 'train'.*--split"):
        HuggingfaceSource(tmp_path)
    with pytest.raises(ValueError, match="no split 'dev'"):
        HuggingfaceSource(tmp_path, split="dev")
    assert len(HuggingfaceSource(tmp_path, split="test")) == 2


def test_rows_that_cannot_be_used_are_skipped_and_listed(tmp_path, noise):
    made = table(noise, range(4), text=["ok", None, "  ", "fine"])
    # A text that is not UTF-8, and an image that is only a path.
    broken = pa.array([b"\xff\xfe", b"ok", b"ok", b"ok"]).view(pa.string())
    made = made.set_column(1, "text", broken)
    images = made["image"].to_pylist()
    images[2]["bytes"] = None
    made = made.set_column(0, "image", pa.array(images, IMAGE))
    save(made, tmp_path / "hf" / "data-00000-of-00001.arrow")
    source = HuggingfaceSource(tmp_path / "hf")
    summary = write_data_set(source, tmp_path / "out", Settings(on_corrupt="skip"))
    assert [name for name, _ in summary.skipped] == ["00000000", "00000002"]
    assert "utf-8" in summary.skipped[0][1]
    assert "not inside the table" in summary.skipped[1][1]


def test_rows_without_a_caption_are_skipped(tmp_path, noise):
    save(table(noise, range(3), text=["ok", None, " "]), tmp_path / "hf/train.parquet")
    source = HuggingfaceSource(tmp_path / "hf")
    summary = write_data_set(source, tmp_path / "out", Settings(on_corrupt="skip"))
    assert [reason for _, reason in summary.skipped] == ["has no caption"] * 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "but none of image"),
        ({"image": [b"x"]}, "but none of captions"),
    ],
)
def test_a_missing_column_is_named_with_the_way_out(tmp_path, columns, message):
    save(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        HuggingfaceSource(tmp_path)


def test_labels_outside_of_the_classes_are_refused(tmp_path, noise):
    save(table(noise, range(2), label=[0, 2]), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="1 labels are not among the 2 classes"):
        HuggingfaceSource(tmp_path)


@pytest.mark.parametrize("name", ["train.parquet", "data-00000-of-00001.arrow"])
def test_a_damaged_table_is_named(tmp_path, noise, name):
    save(table(noise, range(4)), tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"is damaged .*fetch it again"):
        HuggingfaceSource(tmp_path)


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no \.arrow or \.parquet files"):
        HuggingfaceSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        HuggingfaceSource(tmp_path / "absent")
