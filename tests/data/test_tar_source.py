"""Tar files of images and texts, as webdataset writes them and as an enemy might."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from copymit.data.examples import ExampleSource
from copymit.data.folder_listing import missing_numbers
from copymit.data.images import decode_image
from copymit.data.tar_source import TarSource


def png(value=7):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(members, name="shard.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members:
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return tmp_path / name

    return write


def test_images_come_with_the_texts_beside_them(write):
    path = write(
        [
            ("000.jpg", png(1)),
            ("000.txt", "ein Käse\n".encode()),
            ("000.json", b"{}"),
            ("sub/001.PNG", png(2)),
            ("002.txt", b"a text alone"),
        ]
    )
    source = TarSource([path])
    assert isinstance(source, ExampleSource)
    assert list(source.example_ids) == ["000", "sub/001"]
    assert [source[i].captions for i in range(2)] == [("ein Käse",), ()]
    assert source.provenance.left_out == ["002.txt"]
    assert source.caption_counts.tolist() == [1, 0]
    pixels = [np.asarray(decode_image(source[i].image, "x"))[0, 0, 0] for i in range(2)]
    assert pixels == [1, 2]


def test_several_files_are_one_source_with_their_names_in_the_ids(write):
    paths = [write([("0.png", png(i))], f"{i}.tar") for i in (1, 2)]
    source = TarSource(paths)
    assert list(source.example_ids) == ["1.tar/0", "2.tar/0"]
    assert source[1].image == png(2)


@pytest.mark.parametrize("name", ["../up.png", "/etc/x.png", "a/../../b.png"])
def test_names_that_leave_the_archive_are_refused(name, write):
    with pytest.raises(ValueError, match=r"shard\.tar: members' names leave"):
        TarSource([write([("ok.png", png()), (name, png())])])


def test_a_cut_off_file_is_named(write):
    path = write([(f"{i}.png", png()) for i in range(30)])
    data = path.read_bytes()
    for keep in (len(data) // 2 + 100, 700):
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=r"shard\.tar is not a whole.*again"):
            TarSource([path])


def test_a_file_that_is_no_tar_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match=r"x\.tar is not a whole, uncompressed tar"):
        TarSource([tmp_path / "x.tar"])
    with pytest.raises(FileNotFoundError, match=r"no tar file at .*y\.tar"):
        TarSource([tmp_path / "y.tar"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.png", b"y")], "occur twice"),
        ([("a.png", b"x"), ("a.jpg", b"y")], "'a' has 2 images"),
        ([("a.txt", b"x")], "no images in"),
        ([("a.png", b"x"), ("a.txt", b"x" * (2**20 + 1))], "'a' has more than"),
    ],
)
def test_members_that_do_not_fit_are_named(members, message, write):
    with pytest.raises(ValueError, match=message):
        TarSource([write(members)])


def test_a_text_that_is_not_utf8_is_named_when_it_is_read(write):
    source = TarSource([write([("a.png", png()), ("a.txt", b"\xff\xfe")])])
    with pytest.raises(ValueError, match="text of 'a'"):
        source[0]


def test_links_in_an_archive_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        entry = tarfile.TarInfo("a.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(ValueError, match="no images in"):
        TarSource([tmp_path / "l.tar"])


def test_missing_files_of_a_numbered_set_are_told(write, caplog):
    paths = [write([("0.png", png())], f"{i:05d}.tar") for i in (0, 1, 4)]
    TarSource(paths)
    assert "2 of the numbered files are missing: '00002', '00003'" in caplog.text


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["00000.tar", "00002.tar"], ["00001"]),
        (["a-1.tar", "a-2.tar"], ["0"]),
        (["a.tar", "c.tar"], []),
        (["photos2019.tar", "albums2020.tar"], []),
        ([], []),
    ],
)
def test_numbers_are_missed_only_in_numbered_sets(names, missing):
    assert missing_numbers(names) == missing
