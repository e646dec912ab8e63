"""Captions that lie beside images are found, or the file that cannot be read is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import common
from copymit.data.dataset import load_dataset
from copymit.data.examples import describe_captions, describe_left_out
from copymit.data.folder_source import FolderSource
from copymit.data.tar_source import TarSource
from tests.data.folders import png


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


IMAGES = {f"{name}.png": png(i) for i, name in enumerate("ab")}
ROWS = [
    {"file_name": "a.png", "text": "a cat"},
    {"file_name": "b.png", "text": "a dog, asleep"},
]


def captions_of(source) -> list[tuple[str, ...]]:
    return [source[i].captions for i in range(len(source))]


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("metadata.csv", 'file_name,text\na.png,a cat\nb.png,"a dog, asleep"\n'),
        ("metadata.csv", 'file_name,text\r\na.png,a cat\r\nb.png,"a dog, asleep"\r\n'),
        ("metadata.parquet", parquet(ROWS)),
        ("captions.json", json.dumps({r["file_name"]: r["text"] for r in ROWS})),
        ("captions.json", json.dumps({r["file_name"]: [r["text"]] for r in ROWS})),
        ("captions.json", json.dumps(ROWS)),
        ("captions.tsv", "image\tcaption\na.png\ta cat\nb.png\ta dog, asleep\n"),
        ("captions.txt", "a.png#0\ta cat\nb.png#0\ta dog, asleep\n"),
        (
            "captions.json",
            json.dumps(
                {
                    "images": [
                        {"id": 7, "file_name": "a.png"},
                        {"id": 8, "file_name": "b.png"},
                    ],
                    "annotations": [
                        {"image_id": 8, "caption": "a dog, asleep"},
                        {"image_id": 7, "caption": "a cat"},
                    ],
                }
            ),
        ),
    ],
)
def test_a_table_in_the_folder_is_read(tmp_path, name, content):
    source = FolderSource(write(tmp_path, IMAGES | {name: content}))
    assert captions_of(source) == [("a cat",), ("a dog, asleep",)]
    assert describe_captions(source) == (
        f"captions: 2 of 2 images, 1 each, from {name}"
    )
    assert describe_left_out(source) == ""


def test_a_row_a_caption_and_a_column_a_caption_are_several_captions(tmp_path):
    rows = "file_name,caption\na.png,one\nb.png,uno\na.png,two\nb.png,due\n"
    columns = "file_name,caption_1,caption_0,author\na.png,two,one,x\nb.png,due,uno,y\n"
    for number, table in enumerate((rows, columns)):
        folder = write(tmp_path / f"{number}", IMAGES | {"metadata.csv": table})
        assert captions_of(FolderSource(folder)) == [("one", "two"), ("uno", "due")]


def test_several_columns_of_text_are_listed_and_can_be_named(tmp_path):
    table = "file_name,caption,text\na.png,c1,t1\nb.png,c2,t2\n"
    folder = write(tmp_path, IMAGES | {"metadata.csv": table})
    source = FolderSource(folder)
    assert source.caption_counts.tolist() == [0, 0]
    assert (
        "metadata.csv' has the columns caption, text" in source.provenance.caption_fault
    )
    assert "--caption_column" in source.provenance.caption_fault
    named = FolderSource(folder, caption_column="text")
    assert captions_of(named) == [("t1",), ("t2",)]
    both = FolderSource(folder, caption_column="text,caption")
    assert captions_of(both)[0] == ("t1", "c1")
    absent = FolderSource(folder, caption_column="title")
    assert "but not title" in absent.provenance.caption_fault


def test_a_table_above_folders_and_in_a_class_folder_is_read(tmp_path):
    images = {"cat/a.png": png(), "owl/b.png": png(1)}
    table = json.dumps({"file_name": "cat/a.png", "text": "x"}) + "\n"
    table += json.dumps({"file_name": "owl/b.png", "text": "y"})
    source = FolderSource(write(tmp_path / "1", images | {"metadata.jsonl": table}))
    assert captions_of(source) == [("x",), ("y",)]
    assert source.class_names == ("cat", "owl")
    below = {"images/a.png": png(), "images/b.png": png(1)}
    table = table.replace("cat/", "").replace("owl/", "")
    source = FolderSource(
        write(tmp_path / "2", below | {"images/metadata.jsonl": table})
    )
    assert captions_of(source) == [("x",), ("y",)]


@pytest.mark.parametrize("suffix", ["txt", "caption", "text", "png.txt", "TXT"])
def test_a_text_beside_each_image_is_its_caption(tmp_path, suffix):
    texts = {f"a.{suffix}": "a cat\n", f"b.{suffix}": "\ufeffa dog"}
    source = FolderSource(write(tmp_path, IMAGES | texts))
    assert captions_of(source) == [("a cat",), ("a dog",)]
    kind = suffix.rpartition(".")[2].lower()
    assert describe_captions(source) == (
        f"captions: 2 of 2 images, 1 each, from .{kind} beside the images"
    )


def test_lines_of_a_text_in_a_folder_are_captions_and_odd_separators_are_not(tmp_path):
    texts = {"a.txt": "one\u2028still one\r\ntwo\x85\n\n", "b.txt": "x"}
    source = FolderSource(write(tmp_path, IMAGES | texts))
    assert captions_of(source)[0] == ("one\u2028still one", "two")


def test_numbered_texts_and_fields_of_json_are_captions(tmp_path):
    texts = {f"a.{i}.txt": f"text {i}" for i in (10, 2, 0)}
    texts["b.json"] = json.dumps({"caption": "from json", "width": 4})
    expected = [("text 0", "text 2", "text 10"), ("from json",)]
    source = FolderSource(write(tmp_path / "f", IMAGES | texts))
    tar = TarSource([write_tar(tmp_path / "x.tar", IMAGES | texts)])
    for found in (source, tar):
        assert captions_of(found) == expected
        assert found.caption_counts.tolist() == [3, 1]
        assert "1 to 3 each, from .0.txt ..., .json beside" in describe_captions(found)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one\ntwo", ("one\ntwo",)),
        ("a.caption", "one", ("one",)),
        ("a.text", "one", ("one",)),
        ("a.captions", "one\ntwo\n", ("one", "two")),
        ("a.json", '{"captions": ["one", "two"]}', ("one", "two")),
        ("a.json", '{"caption": null, "width": 3}', ()),
        ("a.txt", " \n", ()),
    ],
)
def test_texts_in_tar_files_are_captions(tmp_path, name, text, expected):
    path = write_tar(tmp_path / "x.tar", {"a.png": png(), name: text})
    assert TarSource([path])[0].captions == expected


def test_names_with_dots_keep_their_images_and_their_texts(tmp_path):
    files = {"v1.2.png": png(), "v1.2.txt": "one", "v1.3.png": png(1)}
    files |= {"v1.3.0.txt": "x", "v1.3.1.txt": "y"}
    tar = TarSource([write_tar(tmp_path / "x.tar", files)])
    assert list(tar.example_ids) == ["v1.2", "v1.3"]
    folder = FolderSource(write(tmp_path / "f", files))
    assert captions_of(tar) == captions_of(folder) == [("one",), ("x", "y")]
    assert not tar.provenance.left_out
    assert not folder.provenance.left_out


def test_two_texts_for_one_image_are_named(tmp_path):
    source = FolderSource(write(tmp_path, IMAGES | {"a.txt": "x", "a.caption": "y"}))
    assert "captions in a.txt, a.caption: keep one" in source.provenance.caption_fault


def test_a_table_and_texts_beside_it_are_named(tmp_path):
    files = {"a.txt": "x", "metadata.csv": "file_name,text\na.png,1\nb.png,2\n"}
    source = FolderSource(write(tmp_path, IMAGES | files))
    assert (
        "'metadata.csv' and in .txt beside the images"
        in source.provenance.caption_fault
    )
    chosen = FolderSource(tmp_path, tmp_path / "metadata.csv")
    assert captions_of(chosen) == [("1",), ("2",)]


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    texts = {"a.txt": b"fine\nfa\xdfade", "b.txt": "x"}
    source = FolderSource(write(tmp_path, IMAGES | texts))
    assert "'a.txt', line 2 is not UTF-8" in source.provenance.caption_fault


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{',
            "line 2 is not JSON",
        ),
        ("metadata.csv", "file_name,seed\na.png,1\n", "columns seed, but none of"),
        ("metadata.csv", "name,text\na.png,1\n", "none that names the image"),
        (
            "metadata.csv",
            "file_name,text\na.png,a cat, black\n",
            "row 1 has not as many",
        ),
        ("metadata.csv", "file_name,text\na.png,x\n", "without captions: 'b.png'"),
        ("metadata.parquet", "PAR1", r"metadata.parquet' cannot be read"),
        ("captions.json", "[]", "holds a list"),
        ("captions.json", "[3]", "row 1 is not an object"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_when_captions_are_needed(
    tmp_path, name, content, message
):
    folder = write(tmp_path, IMAGES | {name: content})
    assert FolderSource(folder).caption_counts.tolist() == [0, 0]
    config = common.get_config().data
    config.source = str(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(config, 0)
    assert name in str(error.value)
    config.caption_style = "fixed"
    assert len(load_dataset(config, 0).indices) == 2


def test_no_caption_is_made_up(tmp_path, caplog):
    folder = write(tmp_path, IMAGES | {"a.txt": "a cat", "clip.mp4": "x", "b.xyz": "y"})
    config = common.get_config().data
    config.source = str(folder)
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match=r"1 of 2 have none: 'b\.png'.*'class'"):
        load_dataset(config, 0)
    assert "captions: 1 of 2 images, 1 each, from .txt beside" in caplog.text
    assert "left out, neither images nor captions: 2 files" in caplog.text
    caplog.clear()
    config.caption_style = "unconditional"
    load_dataset(config, 0)
    assert "; not used, data.caption_style='unconditional'" in caplog.text


def test_folders_of_kohya_keep_their_texts_and_lend_their_names_when_asked(tmp_path):
    files = {"10_sks dog/a.png": png(), "1_dog/b.png": png(1)}
    bare = FolderSource(write(tmp_path / "bare", files))
    assert bare.class_names == ("sks dog", "dog")[::-1] or bare.class_names
    assert set(bare.class_names) == {"sks dog", "dog"}
    assert not bare.caption_counts.any()
    texts = {"10_sks dog/a.caption": "sks dog on a sofa", "1_dog/b.caption": "a dog"}
    told = FolderSource(write(tmp_path / "told", files | texts))
    assert set(captions_of(told)) == {("sks dog on a sofa",), ("a dog",)}
    same = FolderSource(write(tmp_path / "s", {"1_a/x.png": png(), "2_a/y.png": png()}))
    assert same.class_names == ("1_a", "2_a")


def test_images_are_known_by_content_and_the_rest_is_left_out_by_name(tmp_path):
    jpeg, avif, tiff = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
    Image.new("RGB", (8, 8), "red").save(avif, "AVIF")
    Image.new("I;16", (8, 8), 40_000).save(tiff, "TIFF")
    files = {
        "photo": jpeg.getvalue(),
        "a.avif": avif.getvalue(),
        "b.tif": tiff.getvalue(),
        "c.part": jpeg.getvalue(),
        "readme.rst": "words",
        "movie.mp4": b"\0\0\0 ftypisom",
    }
    folder = FolderSource(write(tmp_path / "f", files))
    tar = TarSource([write_tar(tmp_path / "x.tar", files)])
    assert list(folder.example_ids) == ["a.avif", "b.tif", "c.part", "photo"]
    assert sorted(tar.example_ids) == ["a", "b", "c", "photo"]
    for source in (folder, tar):
        assert sorted(source.provenance.left_out) == ["movie.mp4", "readme.rst"]
        assert "2 files (1" in describe_left_out(source)
    counts = np.array([len(c) for c in captions_of(folder)])
    assert not counts.any()


def test_train_and_test_are_not_merged(tmp_path):
    flat = write(tmp_path / "flat", {"train/a.png": png(), "test/a.png": png(1)})
    with pytest.raises(ValueError, match=r"several splits .*'test', 'train'.*--split"):
        FolderSource(flat)
    with pytest.raises(ValueError, match=r"no split 'val' in .*'test', 'train'"):
        FolderSource(flat, split="val")
    test = FolderSource(flat, split="test")
    assert (test.example_ids, test.class_names) == (("a.png",), ())
    assert test[0].image == png(1)
    deep = {"train/cat/a.png": png(), "val/cat/b.png": png(1)}
    classes = FolderSource(write(tmp_path / "deep", deep), split="val")
    assert (classes.example_ids, classes.class_names) == (("cat/b.png",), ("cat",))
    alone = FolderSource(write(tmp_path / "alone", {"train/a.png": png()}))
    assert alone.example_ids == ("a.png",)
    toys = {"train/a.png": png(), "plane/a.png": png()}
    assert FolderSource(write(tmp_path / "toys", toys)).class_names == (
        "plane",
        "train",
    )


def test_a_table_above_the_splits_or_with_a_column_of_them_is_read_by_split(tmp_path):
    files = {"train/a.png": png(), "test/a.png": png(1)}
    rows = [{"file_name": f"{s}/a.png", "text": f"of {s}"} for s in ("train", "test")]
    table = "\n".join(map(json.dumps, rows))
    folder = write(tmp_path / "above", files | {"metadata.jsonl": table})
    assert captions_of(FolderSource(folder, split="test")) == [("of test",)]
    rows = [r | {"split": s} for r, s in zip(ROWS, ("train", "test"), strict=True)]
    table = "\n".join(map(json.dumps, rows))
    folder = write(tmp_path / "column", IMAGES | {"metadata.jsonl": table})
    with pytest.raises(ValueError, match=r"several splits.*'test', 'train'"):
        FolderSource(folder)
    source = FolderSource(folder, split="test")
    assert source.example_ids == ("b.png",)
    assert captions_of(source) == [("a dog, asleep",)]
    with pytest.raises(ValueError, match=r"no split 'test'.* there are: none"):
        FolderSource(write(tmp_path / "none", IMAGES), split="test")


def test_what_systems_leave_is_passed_over(tmp_path):
    junk = {"__MACOSX/._a.png": "x", "._a.png": "x", ".DS_Store": "x", "Thumbs.db": "x"}
    folder = FolderSource(write(tmp_path / "f", IMAGES | junk))
    tar = TarSource([write_tar(tmp_path / "x.tar", IMAGES | junk)])
    for source in (folder, tar):
        assert len(source) == 2
        assert not source.provenance.left_out


def test_names_from_macos_and_windows_are_equal_to_ours(tmp_path):
    one, two = "caf\u00e9", "cafe\u0301"
    files = {f"{two}/a.png": png(), f"{two}/b.png": png(1)}
    table = json.dumps({f"{one}\\a.png": "x", f".\\{one}\\b.png": "y"})
    source = FolderSource(write(tmp_path, files | {"captions.json": table}))
    assert captions_of(source) == [("x",), ("y",)]
    assert not source.provenance.caption_fault
