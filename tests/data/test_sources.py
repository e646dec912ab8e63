import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from copymit.data import sources
from copymit.data.images import ImageError, decode_image
from copymit.data.sources import (
    IMAGENETTE_CLASSES,
    EmbeddedSource,
    FolderSource,
    load_source,
    parse_token_ids,
    select_examples,
)

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    for level, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(level))
    return folder


def write_captions(path: Path, captions: object) -> Path:
    path.write_text(json.dumps(captions))
    return path


@pytest.fixture
def flat(tmp_path):
    return write_images(tmp_path / "flat", "b.png", "a.png", "c.png")


@pytest.fixture
def classes(tmp_path):
    return write_images(
        tmp_path / "classes", "owl/2.png", "owl/1.png", "cat/2.png", "cat/3.png"
    )


def test_a_flat_folder_has_no_classes(flat):
    source = FolderSource(flat)
    assert source.example_ids == ("a.png", "b.png", "c.png")
    assert source.class_names == ()
    assert source.labels.tolist() == [-1, -1, -1]
    assert source.labels.dtype == source.caption_counts.dtype == np.int32
    assert source[1] == ("b.png", png(0), ("An image",), None)
    assert len(source) == 3


def test_class_folders_become_sorted_classes(classes):
    source = FolderSource(classes)
    assert source.example_ids == ("cat/2.png", "cat/3.png", "owl/1.png", "owl/2.png")
    assert source.class_names == ("cat", "owl")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source[3] == ("owl/2.png", png(0), ("An image of owl",), 1)


def test_ids_are_sorted_as_whole_paths(tmp_path):
    folder = write_images(tmp_path / "d", "a/1.png", "a-b/1.png")
    source = FolderSource(folder)
    assert source.example_ids == ("a-b/1.png", "a/1.png")
    assert [source.class_names[label] for label in source.labels] == ["a-b", "a"]


def test_every_suffix_counts_in_any_case_and_other_files_do_not(tmp_path):
    names = ["1.jpg", "2.JPEG", "3.Png", "4.webp", "5.BMP", "6.gif"]
    folder = write_images(
        tmp_path / "d", *names, ".hidden.jpg", "notes.txt", "jpg", ".cache/x.png"
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
    with pytest.raises(ValueError, match=r"no images in .* \.jpg \.jpeg \.png"):
        FolderSource(tmp_path)


def test_images_beside_class_folders_are_refused(classes):
    write_images(classes, "x.png")
    message = r"both in itself \('x\.png'\) and in its folders \('cat', 'owl'\)"
    with pytest.raises(ValueError, match=message):
        FolderSource(classes)


def test_folders_that_lie_too_deep_are_refused_with_the_way_out(tmp_path):
    folder = write_images(tmp_path / "d", "train/cat/1.png", "val/cat/1.png")
    message = r"too deep \('train/cat', 'val/cat'\).*point to .*'.*/d/train'"
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
    assert source[4] == ("owl/9.png", png(3), ("An image of owl",), 1)


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
    monkeypatch.setattr(sources, "_MAX_FILE_BYTES", 10)
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
    assert source[0].captions == ("An image of tabby",)


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
    assert source[1].captions == ("An image of parachute",)
    write_images(folder, "cat/1.png")
    assert FolderSource(folder).class_names == ("cat", "n02102040", "n03888257")


def test_imagenette_has_ten_classes():
    assert len(set(IMAGENETTE_CLASSES.values())) == 10
    assert list(IMAGENETTE_CLASSES) == sorted(IMAGENETTE_CLASSES)


@pytest.mark.parametrize(
    ("caption", "token_ids"),
    [
        ("[49406, 320, 7]", [49406, 320, 7]),
        (" [ 1 ,2 ]\n", [1, 2]),
        ("[007]", [7]),
        ("[]", None),
        ("[1, -2]", None),
        ("[1.5]", None),
        ("[1,]", None),
        ("[9999999999]", None),
        ("[1] a cat", None),
        ("a cat", None),
        ("__import__('os')", None),
    ],
)
def test_token_ids_are_read_from_text_and_nothing_else_is(caption, token_ids):
    assert parse_token_ids(caption) == token_ids


def test_load_source_opens_the_embedded_set_or_a_folder(flat, classes, tmp_path):
    assert isinstance(load_source("fluent_emoji"), EmbeddedSource)
    path = write_captions(tmp_path / "c.json", {f"{i}.png": [i] for i in "abc"})
    source = load_source(str(flat), captions=str(path), captions_format="relative")
    assert source[0].captions == ("a",)
    named = load_source(str(classes), class_names={"cat": "c", "owl": "o"})
    assert named.class_names == ("c", "o")


def test_the_embedded_set_takes_no_captions(tmp_path):
    with pytest.raises(ValueError, match=r"give none, or give \./fluent_emoji"):
        load_source("fluent_emoji", captions=str(tmp_path / "c.json"))
    with pytest.raises(ValueError, match="has captions and class names of its own"):
        load_source("fluent_emoji", class_names={})


@pytest.fixture(scope="module")
def emoji():
    return EmbeddedSource()


def test_a_selection_is_sorted_disjoint_and_seeded(emoji):
    first, same, other = (
        select_examples(emoji, num_examples=300, num_heldout=50, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.train, same.train)
    np.testing.assert_array_equal(first.heldout, same.heldout)
    assert not np.array_equal(first.train, other.train)
    for indices, count in ((first.train, 300), (first.heldout, 50)):
        assert indices.dtype == np.int64
        assert len(indices) == count
        assert (np.diff(indices) > 0).all()
    assert not np.intersect1d(first.train, first.heldout).size


def test_a_selection_is_spread_over_the_whole_source(emoji):
    train = select_examples(emoji, num_examples=400, seed=0).train
    # Mean of 400 draws from 0..1851: standard deviation about 24.
    assert abs(train.mean() - 925.5) < 5 * 24


def test_neither_number_changes_what_the_other_draws(emoji):
    small = select_examples(emoji, num_examples=100, num_heldout=20, seed=3)
    large = select_examples(emoji, num_examples=900, num_heldout=20, seed=3)
    alone = select_examples(emoji, num_examples=100, seed=3)
    np.testing.assert_array_equal(small.heldout, large.heldout)
    np.testing.assert_array_equal(small.train, alone.train)
    assert np.isin(small.train, large.train).all()


@pytest.mark.parametrize("num_examples", [None, 0])
def test_no_number_takes_all_that_remain(emoji, num_examples):
    selection = select_examples(
        emoji, num_examples=num_examples, num_heldout=52, seed=0
    )
    assert len(selection.train) == 1800
    everything = np.union1d(selection.train, selection.heldout)
    np.testing.assert_array_equal(everything, np.arange(1852))


def test_only_the_named_classes_are_drawn(emoji):
    classes = ("food & drink", "animals & nature")
    selection = select_examples(
        emoji, classes=classes, num_examples=None, num_heldout=10, seed=0
    )
    expected = {emoji.class_names.index(name) for name in classes}
    assert set(emoji.labels[selection.train]) == expected
    assert set(emoji.labels[selection.heldout]) <= expected
    assert len(selection.train) + 10 == np.isin(emoji.labels, list(expected)).sum()


def test_unknown_classes_are_named_with_the_known(emoji, flat):
    message = "unknown classes cats, dogs; known: smileys & emotion, people & body"
    with pytest.raises(ValueError, match=message):
        select_examples(
            emoji, classes=["dogs", "flags", "cats"], num_examples=1, seed=0
        )
    with pytest.raises(ValueError, match="known: none, this source has no classes"):
        select_examples(FolderSource(flat), classes=["x"], num_examples=1, seed=0)
    with pytest.raises(ValueError, match="a list of names, got the text 'flags'"):
        select_examples(emoji, classes="flags", num_examples=1, seed=0)


def test_too_few_examples_are_refused_with_both_numbers(flat, classes):
    source = FolderSource(flat)
    message = "3 training and 1 held-out examples were asked for, .* only 3: ask"
    with pytest.raises(ValueError, match=message):
        select_examples(source, num_examples=3, num_heldout=1, seed=0)
    message = r"at least 1 training and 3 held-out .* only 3"
    with pytest.raises(ValueError, match=message):
        select_examples(source, num_examples=None, num_heldout=3, seed=0)
    with pytest.raises(ValueError, match="only 2 in owl: ask for fewer"):
        select_examples(FolderSource(classes), classes=["owl"], num_examples=3, seed=0)


@pytest.mark.parametrize("name", ["num_examples", "num_heldout", "seed"])
def test_negative_numbers_are_refused(emoji, name):
    numbers = {"num_examples": 5, "num_heldout": 5, "seed": 0, name: -1}
    with pytest.raises(ValueError, match=r"must not be negative, got .*-1"):
        select_examples(emoji, **numbers)


def extract(archive: Path, folder: Path, is_wanted) -> Path:
    """Extracts the wanted files flat or by class, as they lie in the archive."""
    if not archive.is_file():
        pytest.skip(f"needs ../shared/data/{archive.name}")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if m.isfile() and is_wanted(m.name)]
        tar.extractall(folder, wanted, filter="data")
    return folder


def test_real_imagenette_has_readable_classes(tmp_path):
    folder = extract(
        SHARED_DATA / "imagenette2-224.tar",
        tmp_path,
        lambda name: "/val/" in name and name.endswith("0.JPEG"),
    )
    source = load_source(str(folder / "imagenette2-224" / "val"))
    assert source.class_names == tuple(IMAGENETTE_CLASSES.values())
    assert set(source.labels) == set(range(10))
    example = source[0]
    assert example.example_id.startswith("n01440764/")
    assert example.captions == ("An image of tench",)
    assert decode_image(example.image, example.example_id).size == (224, 224)
    with pytest.raises(ValueError, match=r"too deep.*imagenette2-224/val'"):
        load_source(str(folder / "imagenette2-224"))


def test_real_flickr_captions_fit_their_images(tmp_path):
    folder = extract(
        SHARED_DATA / "flickr8k-2000.tar",
        tmp_path,
        lambda name: name.endswith(("captions.json", "00.jpg", "5c.jpg")),
    )
    path = folder / "flickr8k-2000" / "captions.json"
    images = path.parent / "images"
    captions = json.loads(path.read_text())
    present = {name: captions[name] for name in os.listdir(images)}
    message = f"{len(captions) - len(present)} captions for images that are absent"
    with pytest.raises(ValueError, match=message):
        load_source(str(images), captions=str(path))
    write_captions(path, present)
    source = load_source(str(images), captions=str(path))
    assert set(source.caption_counts) == {5}
    assert all(
        source[i].captions == tuple(present[source.example_ids[i]])
        for i in range(len(source))
    )
    write_captions(path, {f"/author/images/{k}": v for k, v in present.items()})
    rooted = load_source(str(images), captions=str(path))
    assert rooted[0] == source[0]
