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
    with pytest.raises(ValueError, match="captions, text may be captions: say which"):
        HuggingfaceSource(tmp_path)
    source = HuggingfaceSource(tmp_path, caption_column="captions")
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
        ({"image": [b"x"], "title": ["t"]}, "but none of captions.*, or none"),
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


def test_a_row_for_each_caption_is_one_image_with_several(tmp_path, noise):
    images = [{"bytes": noise(i // 2), "path": None} for i in range(4)]
    rows = {"image": pa.array(images, IMAGE), "image_id": [5, 5, 6, 6], "id": range(4)}
    texts = {"caption": ["a", "b", "c", None]}
    save(pa.table(rows | texts), tmp_path / "train.parquet")
    source = HuggingfaceSource(tmp_path)
    assert list(source.example_ids) == ["5", "6"]
    assert source.caption_counts.tolist() == [2, 1]
    assert source[0].captions == ("a", "b")
    assert (source[1].image, source[1].captions) == (noise(1), ("c",))
    by_row = HuggingfaceSource(tmp_path, id_column="row")
    assert list(by_row.example_ids) == [f"{i:08d}" for i in range(4)]
    rows["image_id"] = [5, 6, 5, 6]
    save(pa.table(rows | texts), tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match="rows 0 and others have its id, but hold diff"
    ):
        HuggingfaceSource(tmp_path)[0]


@pytest.mark.parametrize(
    "columns",
    [
        {"caption_1": ["b"], "caption_0": ["a"]},
        {"captions": [{"raw": ["a", "b"], "sentid": [1, 2]}]},
        {"captions": [[{"raw": "a", "tokens": ["x"]}, {"raw": "b", "tokens": []}]]},
        {"sentences": pa.array([["a", "b"]], pa.large_list(pa.large_string()))},
    ],
)
def test_several_columns_and_structs_of_captions_are_read(tmp_path, noise, columns):
    save(pa.table({"image": [noise(0)], **columns}), tmp_path / "train.parquet")
    source = HuggingfaceSource(tmp_path)
    assert source[0].captions == ("a", "b")
    assert source.caption_counts.tolist() == [2]


def test_images_and_classes_without_captions_are_kept_without(tmp_path, noise):
    folder = tmp_path / "hf"
    save(table(noise, range(2)).drop_columns(["text"]), folder / "train.parquet")
    source = HuggingfaceSource(folder)
    assert source.caption_counts.tolist() == [0, 0]
    write_data_set(source, tmp_path / "out", Settings())
    assert RecordSource(tmp_path / "out")[1].captions == ()
    save(table(noise, range(2)), folder / "train.parquet")
    assert not HuggingfaceSource(folder, caption_column="none").caption_counts.any()


def test_parts_with_other_kinds_of_text_are_joined_and_others_are_named(
    tmp_path, noise
):
    small = table(noise, range(2))
    large = small.set_column(1, "text", pa.array(["x", "y"], pa.large_string()))
    save(small, tmp_path / "chunk_0.parquet")
    save(large, tmp_path / "chunk_1.parquet")
    source = HuggingfaceSource(tmp_path)
    assert [source[i].captions[0] for i in (0, 3)] == ["picture 0", "y"]
    save(small.drop_columns(["text"]), tmp_path / "chunk_2.parquet")
    with pytest.raises(ValueError, match=r"chunk_2\.parquet has no column 'text'"):
        HuggingfaceSource(tmp_path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["flickr-train.arrow", "flickr-test.arrow"], {"train": 1, "test": 1}),
        (
            [f"imagefolder-train-0000{i}-of-00002.arrow" for i in range(2)]
            + ["imagefolder-validation.arrow"],
            {"train": 2, "validation": 1},
        ),
        (["train-00000-of-00001-ab12cd34.parquet", "test.parquet"], {"train": 1}),
        (["default/train/0000.parquet", "default/test/0000.parquet"], {"test": 1}),
        (
            ["query-00000-of-00001.parquet", "gallery-00000-of-00001.parquet"],
            {"query": 1},
        ),
    ],
)
def test_splits_are_told_apart_and_never_merged(tmp_path, noise, names, splits):
    for name in names:
        save(table(noise, range(1)), tmp_path / name)
    with pytest.raises(ValueError, match=r"has the splits .*--split"):
        HuggingfaceSource(tmp_path)
    for split, length in splits.items():
        assert len(HuggingfaceSource(tmp_path, split=split)) == length


def test_chunks_and_parts_are_no_splits(tmp_path, noise):
    names = ["chunk_0", "chunk_1", "part-00000", "0003", "my-photos"]
    for name in names:
        save(table(noise, range(1)), tmp_path / f"{name}.parquet")
    (tmp_path / "cache-1f3a.arrow").write_bytes(b"what map() left")
    assert len(HuggingfaceSource(tmp_path)) == len(names)


def test_missing_parts_are_told(tmp_path, noise, caplog):
    save(table(noise, range(2)), tmp_path / "train-00001-of-00003.parquet")
    HuggingfaceSource(tmp_path)
    assert "1 of its 3 files are there" in caplog.text


def test_an_id_that_is_empty_names_no_image(tmp_path, noise):
    made = pa.table({"image": [noise(0), noise(1)], "id": ["a", None]})
    save(made, tmp_path / "train.parquet")
    with pytest.raises(
        ValueError, match=r"column id has 1 empty cells.*--id_column=row"
    ):
        HuggingfaceSource(tmp_path)
    assert len(HuggingfaceSource(tmp_path, id_column="row", caption_column="none")) == 2
