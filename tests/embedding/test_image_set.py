"""Sets of images: ids, sizes, and reading in batches."""

import numpy as np
import pytest
from PIL import Image

from copymit.data.sources import FolderSource, load_source
from copymit.embedding.image_set import (
    ImageSet,
    common_size,
    examples_as_images,
    folder_as_images,
    read_batches,
)


def save(folder, name, size=(8, 8), colour=(10, 20, 30)):
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)


def test_examples_have_the_ids_and_pixels_that_training_sees():
    source = load_source("fluent_emoji")
    indices = np.array([5, 700, 31])
    images = examples_as_images("references", source, indices, 16)
    assert images.ids == [source.example_ids[i] for i in (5, 700, 31)]
    for position, image_id in enumerate(images.ids):
        image = images.read(position)
        assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
        np.testing.assert_array_equal(images.by_id(image_id), image)
    assert not np.array_equal(images.read(0), images.read(1))


def test_a_folder_is_cropped_to_the_size_asked_for(tmp_path):
    save(tmp_path, "wide.png", (20, 8))
    save(tmp_path, "tall.png", (8, 30))
    images = folder_as_images("references", tmp_path, 6)
    assert list(images.ids) == ["tall.png", "wide.png"]
    assert {images.read(i).shape for i in range(2)} == {(6, 6, 3)}
    assert (images.read(0) == (10, 20, 30)).all()


def test_a_folder_of_classes_has_paths_as_ids(tmp_path):
    save(tmp_path, "church/1.png")
    save(tmp_path, "parachute/1.png", colour=(9, 9, 9))
    images = folder_as_images("references", tmp_path, 8)
    assert list(images.ids) == ["church/1.png", "parachute/1.png"]
    assert (images.by_id("parachute/1.png") == 9).all()


def test_without_a_size_images_stay_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = folder_as_images("generations", tmp_path, None)
    np.testing.assert_array_equal(images.read(0), pixels)


def test_images_of_several_sizes_are_counted(tmp_path):
    for name, size in {"a": 8, "b": 8, "c": 16}.items():
        save(tmp_path, f"{name}.png", (size, size))
    with pytest.raises(ValueError, match="2 of 8 x 8, 1 of 16 x 16"):
        folder_as_images("generations", tmp_path, None)


def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path):
    image = Image.new("RGB", (8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert common_size(FolderSource(tmp_path), "folder") == 8


def test_images_that_are_not_square_are_refused(tmp_path):
    save(tmp_path, "a.png", (8, 12))
    with pytest.raises(ValueError, match="8 x 12 pixels: crop them to squares"):
        folder_as_images("generations", tmp_path, None)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images in"):
        folder_as_images("generations", tmp_path, None)
    with pytest.raises(FileNotFoundError, match="absent"):
        folder_as_images("generations", tmp_path / "absent", None)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (1, 1, [1])],
)
def test_batches_hold_all_images_in_order(count, batch_size, sizes):
    images = ImageSet(
        "references",
        [str(i) for i in range(count)],
        lambda i: np.full((2, 2, 3), i, np.uint8),
    )
    batches = list(read_batches(images, batch_size))
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches)[:, 0, 0, 0].tolist() == list(range(count))
