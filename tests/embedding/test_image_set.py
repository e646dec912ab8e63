"""Sets of images: whatever they are given as, ids and pixels are the same."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageFile

from copymit.data.images import ImageError
from copymit.data.sources import load_source
from copymit.embedding import image_set
from copymit.embedding.image_set import (
    ImageSet,
    common_size,
    count_sizes,
    examples_as_images,
    open_images,
    reader_by_id,
    view_images,
)


def save(folder, name, size=(8, 8), colour=(10, 20, 30)):
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)


def test_examples_have_the_ids_and_pixels_that_training_sees():
    source = load_source("fluent_emoji")
    indices = np.array([5, 700, 31])
    images = examples_as_images("references", source, indices, 16)
    assert images.ids == [source.example_ids[i] for i in (5, 700, 31)]
    read = reader_by_id(images)
    for position, image_id in enumerate(images.ids):
        image = images.read(position)
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        np.testing.assert_array_equal(read(image_id), image)
    assert not np.array_equal(images.read(0), images.read(1))


def as_folder(pixels, folder):
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def as_tar(pixels, folder):
    path = folder / "images.tar"
    with tarfile.open(path, "w") as tar:
        for i, image in enumerate(pixels):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            entry = tarfile.TarInfo(f"{i:03d}.png")
            entry.size = buffer.tell()
            tar.addfile(entry, io.BytesIO(buffer.getvalue()))
    return path


def as_npz(pixels, folder):
    np.savez(folder / "images.npz", pixels)
    return str(folder / "images.npz")


def as_npy(pixels, folder):
    np.save(folder / "images.npy", pixels)
    return folder / "images.npy"


def as_paths(pixels, folder):
    return sorted(as_folder(pixels, folder).iterdir())


@pytest.mark.parametrize(
    "make",
    [
        as_folder,
        as_tar,
        as_npz,
        as_npy,
        as_paths,
        lambda pixels, _: pixels,
        lambda pixels, _: list(pixels),
        lambda pixels, _: [Image.fromarray(image) for image in pixels],
        lambda pixels, _: ImageSet("some", ["a", "b", "c"], pixels.__getitem__),
    ],
)
def test_every_kind_of_images_gives_the_same_pixels(make, pixels, tmp_path):
    images = open_images("generations", make(pixels, tmp_path), None)
    assert (images.name, len(set(images.ids))) == ("generations", 3)
    for i in range(3):
        np.testing.assert_array_equal(images.read(i), pixels[i])
    small = open_images("generations", make(pixels, tmp_path), 6)
    assert {small.read(i).shape for i in range(3)} == {(6, 6, 3)}


def test_an_archive_of_arrays_may_name_its_images(pixels, tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels, ids=np.array(["x", "y", "z"]))
    assert open_images("references", tmp_path / "a.npz", None).ids == ["x", "y", "z"]


def test_a_pickle_in_an_archive_is_never_run(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"an": "object"}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read as images"):
        open_images("references", tmp_path / "a.npy", None)


def test_a_folder_is_cropped_to_the_size_asked_for(tmp_path):
    save(tmp_path, "wide.png", (20, 8))
    save(tmp_path, "tall.png", (8, 30))
    images = open_images("references", tmp_path, 6)
    assert list(images.ids) == ["tall.png", "wide.png"]
    assert {images.read(i).shape for i in range(2)} == {(6, 6, 3)}
    assert (images.read(0) == (10, 20, 30)).all()


def test_a_folder_of_classes_has_paths_as_ids(tmp_path):
    save(tmp_path, "church/1.png")
    save(tmp_path, "parachute/1.png", colour=(9, 9, 9))
    images = open_images("references", tmp_path, 8)
    assert list(images.ids) == ["church/1.png", "parachute/1.png"]
    assert (reader_by_id(images)("parachute/1.png") == 9).all()


def test_images_of_several_sizes_are_counted(tmp_path):
    for name, size in {"a": 8, "b": 8, "c": 16}.items():
        save(tmp_path, f"{name}.png", (size, size))
    with pytest.raises(ValueError, match=r"2 of 8 x 8, 1 of 16 x 16.*eval\.resolution"):
        open_images("generations", tmp_path, None)


def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path):
    image = Image.new("RGB", (8, 12))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    images = view_images("generations", tmp_path)
    assert count_sizes(images) == {(12, 8): 1}
    assert images.read(0).shape == (8, 12, 3)


def test_images_of_one_short_side_are_cropped_to_it_and_known_as_they_are(tmp_path):
    save(tmp_path, "tall.png", (8, 12))
    save(tmp_path, "wide.png", (20, 8))
    images = open_images("generations", tmp_path, None, keep_original=True)
    assert [images.read(i).shape for i in range(2)] == [(8, 8, 3)] * 2
    originals = [reader_by_id(images, original=True)(i).shape for i in images.ids]
    assert originals == [(12, 8, 3), (8, 20, 3)]


def test_short_sides_that_differ_are_refused_with_the_way_out():
    assert common_size("generations", {(8, 12): 3, (8, 8): 1, (20, 8): 2}) == 8
    with pytest.raises(ValueError, match=r"2 sizes \(3 of 8 x 12, 1 of 9 x 9\).*resol"):
        common_size("generations", {(8, 12): 3, (9, 9): 1})
    with pytest.raises(ValueError, match="none of the generations can be read"):
        common_size("generations", {})


@pytest.mark.parametrize(
    "make",
    [
        as_folder,
        as_tar,
        as_npz,
        as_npy,
        as_paths,
        lambda pixels, _: pixels,
        lambda pixels, folder: f"{as_folder(pixels, folder)}/*.png",
        lambda pixels, folder: [Image.open(p) for p in as_paths(pixels, folder)],
    ],
)
def test_sizes_are_counted_without_decoding(make, pixels, tmp_path, monkeypatch):
    images = view_images("generations", make(pixels[:, :, :10], tmp_path))
    decoded = []
    monkeypatch.setattr(
        image_set,
        "decode_image",
        lambda _, name: decoded.append(name) or Image.new("L", (1, 1)),
    )
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    assert count_sizes(images) == {(10, 12): 3}
    assert decoded == []


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("absent", FileNotFoundError, "no folder 'absent'"),
        ("absent/*.tar", FileNotFoundError, "no tar file matches"),
        ("absent.npz", FileNotFoundError, "no file 'absent.npz'"),
        ([], ValueError, "generations holds no images"),
        (np.zeros((0, 8, 8, 3), np.uint8), ValueError, "holds no images"),
        (np.zeros((2, 8, 8), np.uint8), ValueError, r"uint8, 0 to 255, of shape"),
        (np.zeros((2, 8, 8, 3)), ValueError, "type float64: give uint8"),
        (7, ValueError, "generations is a int: give a folder"),
    ],
)
def test_what_are_no_images_is_said(images, error, message):
    with pytest.raises(error, match=message):
        open_images("generations", images, None)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images in"):
        open_images("generations", tmp_path, None)


def test_an_id_that_occurs_twice_is_named(pixels):
    twice = ImageSet("x", ["a", "b", "a"], pixels.__getitem__)
    with pytest.raises(ValueError, match=r"1 ids of the references occur .*'a'"):
        open_images("references", twice, 8)


def test_a_corrupt_image_is_named_unless_it_may_be_skipped(pixels, tmp_path):
    as_folder(pixels, tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"image '1\.png' is not a readable"):
        open_images("generations", tmp_path, None)
    images = open_images("generations", tmp_path, None, skip_corrupt=True)
    assert count_sizes(view_images("x", tmp_path), skip_corrupt=True) == {(12, 12): 2}
    with pytest.raises(ImageError):
        images.read(1)


def test_a_list_whose_file_is_gone_names_it(pixels, tmp_path):
    paths = as_paths(pixels, tmp_path)
    images = open_images("generations", paths, 8)
    paths[2].unlink()
    with pytest.raises(ImageError, match=r"2\.png' cannot be read"):
        images.read(2)


def test_images_of_odd_sizes_are_named(tmp_path, caplog):
    for name, size in (("a", (8, 8)), ("b", (8, 8)), ("c", (9, 8)), ("d", (7, 9))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="have 3 sizes"):
        open_images("generations", tmp_path, None)
    assert "of other sizes than most: 'd.png 7 x 9', 'c.png 9 x 8'" in caplog.text


def test_a_pattern_finds_images_by_content_and_names_the_rest(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "photo").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "log.rst").write_text("words")
    images = open_images("generations", str(tmp_path / "*"), 8)
    assert sorted(images.ids) == ["a.png", "photo"]
    assert "1 files that match" in caplog.text
    assert "log.rst" in caplog.text
