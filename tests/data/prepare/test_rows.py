"""What becomes of images and captions as the world has them."""

import io

import numpy as np
import pytest
from PIL import Image

from copymit.data.examples import Example, Provenance
from copymit.data.images import decode_image
from copymit.data.prepare.rows import Row, make_row, pick_metadata
from copymit.data.tf_example import decode_example


class OneExample:
    """A source of a single example."""

    class_names = ()
    provenance = Provenance()
    labels = np.array([-1])
    caption_counts = np.array([1])

    def __init__(self, image, captions=("a text",), metadata=None):
        self.example = Example("x", image, captions, None)
        self.example_ids = ["x"]
        self._metadata = metadata or {}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.example

    def metadata(self, index):
        return self._metadata


@pytest.mark.parametrize(
    ("name", "size", "colour"),
    [
        ("one_pixel", (1, 1), (255, 0, 0)),
        ("cmyk", (6, 4), (255, 255, 255)),
        ("grey", (6, 4), (0, 0, 0)),
        ("sixteen_bit", (6, 4), (156, 156, 156)),
        ("animated", (6, 4), None),
        ("rgba", (6, 4), (255, 255, 255)),
        ("rotated", (4, 6), None),
    ],
)
def test_odd_images_are_kept_as_files_and_decode(odd_images, name, size, colour):
    row = make_row(OneExample(odd_images[name]), 0, 1)
    assert isinstance(row, Row)
    assert (row.facts["width"], row.facts["height"]) == size
    stored = decode_example(row.record)
    assert stored.image == odd_images[name]
    image = decode_image(stored.image, "x")
    assert (image.mode, image.size) == ("RGB", size)
    if colour is not None:
        # JPEG and CMYK round by a little.
        np.testing.assert_allclose(image.getpixel((0, 0)), colour, atol=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("huge", "is too large"),
        ("cut_off", "is corrupt or truncated"),
        ("text", "is not a readable"),
        ("empty", "is not a readable"),
    ],
)
def test_bad_images_have_a_reason(odd_images, name, reason):
    fault = make_row(OneExample(odd_images[name]), 0, 1)
    assert isinstance(fault, str)
    assert reason in fault


def test_a_smallest_side_can_be_asked_for(odd_images):
    assert make_row(OneExample(odd_images["one_pixel"]), 0, 2) == (
        "is 1 x 1, smaller than 2 pixels"
    )


@pytest.mark.parametrize(
    ("captions", "stored"),
    [
        (("a\0b",), ("a b",)),
        (("\x1b[31mred\x7f", "two\nlines"), ("[31mred", "two\nlines")),
        ((" kept as it is ",), (" kept as it is ",)),
        (("word " * 10_000,), ("word " * 10_000,)),
    ],
)
def test_captions_are_made_storable(noise, captions, stored):
    row = make_row(OneExample(noise(0), captions), 0, 1)
    assert decode_example(row.record).captions == stored
    assert row.facts["caption_count"] == len(stored)


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ((), "no caption"),
        (("ok", " "), "an empty caption"),
        (("\0",), "an empty caption"),
        (("\ud800",), "no valid text"),
    ],
)
def test_captions_that_cannot_be_stored_have_a_reason(noise, captions, reason):
    assert reason in make_row(OneExample(noise(0), captions), 0, 1)


def test_metadata_is_found_under_the_names_that_laion_uses(noise):
    metadata = {
        "URL": "http://x",
        "similarity": 0.3,
        "AESTHETIC_SCORE": 5,
        "NSFW": "no",
    }
    row = make_row(OneExample(noise(0), metadata=metadata), 0, 1)
    kept = {name: row.facts[name] for name in ("url", "similarity", "aesthetic_score")}
    assert kept == {"url": "http://x", "similarity": 0.3, "aesthetic_score": 5.0}


def test_metadata_of_another_kind_is_left_out():
    strange = {"url": 3, "similarity": "high", "aesthetic": float("nan")}
    assert set(pick_metadata(strange).values()) == {None}


def test_an_upright_size_is_what_the_index_has(odd_images):
    with Image.open(io.BytesIO(odd_images["rotated"])) as stored:
        assert stored.size == (6, 4)
    facts = make_row(OneExample(odd_images["rotated"]), 0, 1).facts
    assert (facts["width"], facts["height"]) == (4, 6)
