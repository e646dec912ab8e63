"""Folders of images, as people have them."""

import os
import pickle

import numpy as np
import pytest

from copymit.data import folder_source
from copymit.data.folder_source import IMAGENETTE_CLASSES, FolderSource
from copymit.data.images import ImageError
from copymit.data.sources import load_source
from tests.data.folders import png, write_images


def test_a_flat_folder_has_no_classes(flat):
    source = FolderSource(flat)
    assert source.example_ids == ("a.png", "b.png", "c.png")
    assert source.class_names == ()
    assert source.labels.tolist() == [-1, -1, -1]
    assert source.labels.dtype == source.caption_counts.dtype == np.int32
    assert source[1] == ("b.png", png(0), (), None)
    assert len(source) == 3


def test_class_folders_become_sorted_classes(classes):
    source = FolderSource(classes)
    assert source.example_ids == ("cat/2.png", "cat/3.png", "owl/1.png", "owl/2.png")
    assert source.class_names == ("cat", "owl")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source[3] == ("owl/2.png", png(0), (), 1)


def test_ids_are_sorted_as_whole_paths(tmp_path):
    folder = write_images(tmp_path / "d", "a/1.png", "a-b/1.png")
    source = FolderSource(folder)
    assert source.example_ids == ("a-b/1.png", "a/1.png")
    assert [source.class_names[label] for label in source.labels] == ["a-b", "a"]


def test_every_suffix_counts_in_any_case_and_other_files_do_not(tmp_path):
    names = ["1.jpg", "2.JPEG", "3.Png", "4.webp", "5.BMP", "6.gif", "7.jfif"]
    folder = write_images(
        tmp_path / "d", *names, ".hidden.jpg", "notes.txt", ".cache/x.png"
    )
    assert list(FolderSource(folder).example_ids) == names


def test_a_flat_folder_may_hold_folders_without_images(flat):
    (flat / "empty").mkdir()
    assert len(FolderSource(flat)) == 3


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*gone'.*fluent_emoji"):
        load_source(str(tmp_path / "gone"))


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"no images .* holds 'notes.txt'; .*\.jpg"):
        FolderSource(tmp_path)


def test_images_beside_class_folders_are_refused(classes):
    write_images(classes, "x.png")
    message = r"both in itself \('x\.png'\) and in its folders \('cat', 'owl'\)"
    with pytest.raises(ValueError, match=message):
        FolderSource(classes)


def test_folders_that_lie_too_deep_are_refused_with_the_way_out(tmp_path):
    folder = write_images(tmp_path / "d", "2023/cat/1.png", "2024/cat/1.png")
    message = r"too deep \('2023/cat', '2024/cat'\).*point to .*'.*/d/2023'"
    with pytest.raises(ValueError, match=message):
        FolderSource(folder)


def test_an_empty_class_folder_is_named(classes):
    (classes / "ant").mkdir()
    with pytest.raises(ValueError, match=r"1 class folders .* hold no images.*'ant'"):
        FolderSource(classes)


def test_links_that_leave_the_folder_are_refused(flat, tmp_path):
    outside = write_images(tmp_path / "outside", "secret.png")
    (flat / "d.png").symlink_to(outside / "secret.png")
    with pytest.raises(ValueError, match=r"1 links leave the folder.*d\.png"):
        FolderSource(flat)
    (flat / "d.png").unlink()
    (flat / "linked").symlink_to(outside)
    with pytest.raises(ValueError, match=r"links leave the folder.*linked"):
        FolderSource(flat)


def test_a_link_to_a_sibling_with_a_longer_name_leaves_the_folder(tmp_path):
    folder = write_images(tmp_path / "d", "cat/1.png")
    other = write_images(tmp_path / "d2", "2.png")
    (folder / "cat" / "2.png").symlink_to(other / "2.png")
    with pytest.raises(ValueError, match=r"links leave the folder.*2\.png"):
        FolderSource(folder)


def test_links_within_the_folder_are_followed(classes, tmp_path):
    (classes / "owl" / "9.png").symlink_to(classes / "cat" / "3.png")
    (tmp_path / "alias").symlink_to(classes)
    source = FolderSource(tmp_path / "alias")
    assert source[4] == ("owl/9.png", png(3), (), 1)


def test_broken_links_and_special_files_are_refused(flat):
    (flat / "circle.png").symlink_to(flat / "circle.png")
    os.mkfifo(flat / "pipe.png")
    with pytest.raises(ValueError, match="2 are broken links or no regular files"):
        FolderSource(flat)


def test_a_name_that_is_no_text_is_refused(flat):
    try:
        (flat / os.fsdecode(b"\xff.png")).write_bytes(png())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(ValueError, match=r"1 file names are not valid text.*udcff"):
        FolderSource(flat)


def test_a_file_too_large_to_be_an_image_is_not_read(flat, monkeypatch):
    monkeypatch.setattr(folder_source, "_MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match=r"'a\.png' has more than 10 bytes"):
        FolderSource(flat)[0]


def test_a_folder_source_survives_pickling(classes):
    source = FolderSource(classes)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(4)] == [source[i] for i in range(4)]


def test_numpy_indices_work_and_indices_out_of_range_do_not(flat):
    source = FolderSource(flat)
    assert source[np.int64(2)] == source[2]
    with pytest.raises(IndexError):
        source[3]


def test_class_names_can_be_given(classes):
    source = FolderSource(classes, class_names={"owl": "barn owl", "cat": "tabby"})
    assert source.class_names == ("tabby", "barn owl")


def test_a_folder_without_a_class_name_is_named(classes):
    with pytest.raises(ValueError, match="no entry in class_names: add them: 'owl'"):
        FolderSource(classes, class_names={"cat": "tabby"})


@pytest.mark.parametrize("name", ["", " ", 7, "tabby"])
def test_unusable_class_names_are_named(classes, name):
    with pytest.raises(ValueError, match=r"class names are empty, no text, or .*owl"):
        FolderSource(classes, class_names={"cat": "tabby", "owl": name})


def test_imagenette_folders_get_their_names(tmp_path):
    folder = write_images(tmp_path / "d", "n03888257/1.png", "n02102040/1.png")
    source = FolderSource(folder)
    assert source.class_names == ("English springer", "parachute")
    write_images(folder, "cat/1.png")
    assert FolderSource(folder).class_names == ("cat", "n02102040", "n03888257")


def test_imagenette_has_ten_classes():
    assert len(set(IMAGENETTE_CLASSES.values())) == 10
    assert list(IMAGENETTE_CLASSES) == sorted(IMAGENETTE_CLASSES)
