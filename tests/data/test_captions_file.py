import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copymit.data import captions_file
from copymit.data.captions_file import read_captions
from copymit.data.folder_source import FolderSource
from tests.data.folders import write_captions, write_images


def test_captions_are_read_by_relative_path(classes, tmp_path):
    captions = {
        "owl/1.png": ["an owl", "a bird"],
        "owl/2.png": ["two owls"],
        "cat/2.png": ["a cat"],
        "cat/3.png": ["a cat"],
    }
    path = write_captions(tmp_path / "c.json", captions)
    for captions_format in ("auto", "relative"):
        source = FolderSource(classes, path, captions_format=captions_format)
        assert source[2].captions == ("an owl", "a bird")
        assert source.caption_counts.tolist() == [1, 1, 2, 1]
        assert source.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("prefix", ["/fs/author/train/", "./", "data\\set/", ""])
def test_captions_rooted_elsewhere_match_by_their_longest_suffix(
    classes, tmp_path, prefix
):
    ids = ("cat/2.png", "cat/3.png", "owl/1.png", "owl/2.png")
    path = write_captions(tmp_path / "c.json", {f"{prefix}{i}": [i] for i in ids})
    for captions_format in ("auto", "dcr"):
        source = FolderSource(classes, path, captions_format=captions_format)
        assert [source[i].captions[0] for i in range(4)] == list(ids)


def test_a_file_name_alone_is_enough_where_it_is_unique(tmp_path):
    folder = write_images(tmp_path / "d", "tench/1.png", "church/2.png")
    captions = {"/x/n01440764/1.png": ["one"], "2.png": ["two"]}
    source = FolderSource(folder, write_captions(tmp_path / "c.json", captions))
    assert [source[i].captions for i in range(2)] == [("two",), ("one",)]


def test_a_path_that_fits_several_images_is_named(classes, tmp_path):
    captions = {"/x/dog/2.png": ["a"], "/x/1.png": ["b"], "/x/3.png": ["c"]}
    path = write_captions(tmp_path / "c.json", captions)
    message = r"1 captions that fit several images: '/x/dog/2\.png'"
    with pytest.raises(ValueError, match=message):
        FolderSource(classes, path)


def test_two_paths_for_one_image_are_refused(flat, tmp_path):
    captions = {f"/{p}.png": ["x"] for p in ("x/a", "y/a", "x/b", "x/c")}
    path = write_captions(tmp_path / "c.json", captions)
    with pytest.raises(ValueError, match=r"1 images with several entries: 'a\.png'"):
        FolderSource(flat, path)


def test_auto_does_not_guess_once_one_path_is_an_id(classes, tmp_path):
    captions = {i: ["x"] for i in ("cat/2.png", "cat/3.png", "owl/1.png", "2.png")}
    path = write_captions(tmp_path / "c.json", captions)
    with pytest.raises(ValueError, match=r"images that are absent: '2\.png'"):
        FolderSource(classes, path)


def test_an_unknown_captions_format_is_refused(flat, tmp_path):
    path = write_captions(tmp_path / "c.json", {})
    with pytest.raises(ValueError, match="one of auto, relative, dcr, got 'csv'"):
        FolderSource(flat, path, captions_format="csv")


GOOD = {"a.png": ["a"], "b.png": ["b"], "c.png": ["c"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d.png": ["d"]}, r"1 captions for images that are absent: 'd\.png'"),
        ({"../a.png": ["d"]}, r"1 captions for images that are absent: '\.\./a\.png'"),
        ({"b.png": []}, r"1 images without captions: 'b\.png'"),
        ({"b.png": ["x", ""]}, r"1 entries with an empty caption: 'b\.png'"),
        ({"b.png": [" \t\n"]}, r"1 entries with an empty caption: 'b\.png'"),
        ({"b.png": ["x", 3]}, r"1 entries that are not a list of texts: 'b\.png'"),
        ({"b.png": [None]}, r"1 entries that are not a list of texts: 'b\.png'"),
        ({"b.png": {"x": 1}}, r"1 entries that are not a list of texts: 'b\.png'"),
        ({"b.png": ["\ud800"]}, r"1 entries that are not a list of texts: 'b\.png'"),
    ],
)
def test_faults_of_a_captions_file_are_named(flat, tmp_path, change, message):
    path = write_captions(tmp_path / "c.json", GOOD | change)
    with pytest.raises(ValueError, match=message) as error:
        FolderSource(flat, path)
    assert f"captions file {str(path)!r}" in str(error.value)
    assert str(error.value).count("\n  ") == 1, "no other fault is claimed"


def test_images_without_captions_are_listed_ten_at_most(tmp_path):
    folder = write_images(tmp_path / "d", *(f"{i:02}.png" for i in range(13)))
    path = write_captions(tmp_path / "c.json", {"00.png": ["x"]})
    with pytest.raises(ValueError, match=r"12 images without captions: ") as error:
        FolderSource(folder, path)
    assert "'10.png', ...\n" in str(error.value)
    assert "'11.png'" not in str(error.value)


def test_all_faults_are_told_at_once(flat, tmp_path):
    path = write_captions(tmp_path / "c.json", {"a.png": [" "], "b.png": 1, "d": ["x"]})
    with pytest.raises(ValueError, match="absent") as error:
        FolderSource(flat, path)
    assert "without captions: 'c.png'" in str(error.value)
    assert "empty caption: 'a.png'" in str(error.value)
    assert "list of texts: 'b.png'" in str(error.value)


def test_paths_that_occur_twice_are_named(flat, tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"a.png": ["a"], "b.png": ["b"], "a.png": ["c"], "c.png": ["c"]}')
    with pytest.raises(ValueError, match=r"1 paths occur more than once.*'a\.png'"):
        FolderSource(flat, path)


@pytest.mark.parametrize(
    "content", [b"", b"a.png\ta cat", b'{"a.png": [', b"\xff\xfe\xfa", b"[" * 100_000]
)
def test_a_captions_file_that_is_not_json_is_named(flat, tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.json' is not JSON .*one object"):
        FolderSource(flat, path)


@pytest.mark.parametrize("content", ["[]", "3", '"text"', "null"])
def test_a_captions_file_that_is_no_object_is_named(flat, tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"c\.json' holds a \w+: it must be one obj"):
        FolderSource(flat, path)


def test_a_missing_captions_file_is_named(flat, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no captions file '.*gone\.json'"):
        FolderSource(flat, tmp_path / "gone.json")


def test_a_byte_order_mark_does_no_harm(flat, tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert FolderSource(flat, path)[1].captions == ("b",)


def test_token_id_captions_are_kept_as_they_are(flat, tmp_path):
    captions = {f"/x/{i}.png": ["[49406, 320]"] for i in "abc"}
    source = FolderSource(flat, write_captions(tmp_path / "c.json", captions))
    assert source[0].captions == ("[49406, 320]",)


TEXTS = {"owl/1.png": ["one", "uno"], "cat/2.png": ['"é"\n日本', "[3, 4]"]}


@pytest.mark.parametrize(
    ("name", "captions_format", "root"),
    [
        ("c.json", "relative", ""),
        ("c.parquet", "relative", ""),
        ("c.json", "dcr", ""),
        ("c.json", "dcr", "/fs/author/"),
    ],
)
def test_what_is_written_is_read_again(tmp_path, name, captions_format, root):
    path = tmp_path / "new" / name
    captions_file.write_captions(path, TEXTS.items(), captions_format, root)
    expected = [tuple(texts) for texts in TEXTS.values()]
    assert read_captions(path, list(TEXTS), "auto") == expected
    assert read_captions(path, list(TEXTS), captions_format) == expected
    assert [p.name for p in path.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["c.json", "c.parquet"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, name):
    path = tmp_path / name
    path.write_text("before")

    def entries():
        yield "a", ["x"]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        captions_file.write_captions(path, entries())
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"example_id": ["a"], "caption_of_it": ["x"]},
            r"c\.parquet' has the columns caption_of_it, but none of captions, caption",
        ),
        (
            {"url": ["a"], "captions": ["x"]},
            "columns url, captions, but none that names",
        ),
        ({"example_id": [None], "captions": [["x"]]}, "row 1 has no example_id"),
        ({"example_id": ["a"], "captions": [None]}, r"images without captions: 'a'"),
        ({"example_id": ["a"], "captions": [7]}, r"not a list of texts: 'a'"),
        ({"example_id": ["a"], "captions": [["x", None]]}, r"not a list of texts: 'a'"),
        (
            {"example_id": ["a"], "captions": [[]]},
            r"images without captions: 'a'|cannot",
        ),
    ],
)
def test_faults_of_captions_in_parquet_are_named(tmp_path, columns, message):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message):
        read_captions(path, ["a"], "auto")


def test_captions_in_parquet_that_is_none_or_absent_are_named(tmp_path):
    path = tmp_path / "c.parquet"
    with pytest.raises(FileNotFoundError, match=r"no captions file '.*c\.parquet'"):
        read_captions(path, ["a"], "auto")
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match=r"c\.parquet' cannot be read"):
        read_captions(path, ["a"], "auto")


def test_an_unknown_format_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="relative or dcr, not 'auto'"):
        captions_file.write_captions(tmp_path / "c.json", TEXTS.items(), "auto")
