"""Distances of tiles: closed forms, and the case that a global distance misses."""

import numpy as np
import pytest

from copymit.scores.tiled import agrees, compare_tiles, tile_distances, tiled_l2


def test_equal_images_have_no_distance_and_black_to_white_is_one(rng):
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert tiled_l2(image, image) == 0
    black, white = np.zeros_like(image), np.full_like(image, 255)
    assert tiled_l2(black, white) == 1


def test_each_tile_is_its_root_mean_square(rng):
    image, other = rng.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    found = tile_distances(image, other, grid=2)
    for i in range(2):
        for j in range(2):
            part = np.s_[4 * i : 4 * i + 4, 6 * j : 6 * j + 6]
            difference = (image[part].astype(float) - other[part]) / 255
            expected = np.sqrt((difference**2).mean())
            assert found[i, j] == pytest.approx(expected, rel=1e-12)


def test_a_shared_white_background_is_no_copy(rng):
    """Most pixels agree, so the plain distance is small; one tile tells them apart."""
    image, other = np.full((2, 32, 32, 3), 255, np.uint8)
    image[12:20, 12:20], other[12:20, 12:20] = 0, 128
    plain = np.sqrt((((image.astype(float) - other) / 255) ** 2).mean())
    assert plain < 0.15 < tiled_l2(image, other)


def test_noise_on_all_of_an_image_hides_no_copy(rng):
    """Its tiles are further from the image than 0.15, and others three times as far."""
    images = rng.integers(0, 256, (6, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    noisy = np.clip(images[0] + rng.normal(0, 50, images[0].shape), 0, 255)
    noisy = noisy.astype(np.uint8)
    found = compare_tiles(lambda i: tiled_l2(noisy, images[i]), 0, [1, 2, 3])
    assert found[0] > 0.15
    others = np.mean([tiled_l2(noisy, images[i]) for i in (1, 2, 3)])
    assert found[1] == pytest.approx(found[0] / others)
    assert agrees(*map(np.array, found))
    another = compare_tiles(lambda i: tiled_l2(noisy, images[i]), 4, [1, 2, 3])
    assert not agrees(*map(np.array, another))


def test_one_sky_does_not_agree_with_another_though_it_is_near(rng):
    skies = rng.normal(200, 5, (5, 32, 32, 3)).astype(np.uint8)
    found = compare_tiles(lambda i: tiled_l2(skies[4], skies[i]), 0, [1, 2, 3])
    assert found[0] < 0.05
    assert not agrees(*map(np.array, found))


def test_without_other_pictures_the_distance_says_whether_pixels_agree():
    found = [compare_tiles(lambda _, d=d: d, 0, []) for d in (0.1, 0.2)]
    assert np.isnan([ratio for _, ratio in found]).all()
    assert agrees(*map(np.array, zip(*found, strict=True))).tolist() == [True, False]


def test_rows_that_fill_no_tile_do_not_count(rng):
    image = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    other = image.copy()
    other[8:], other[:, 8:] = 0, 0
    assert tiled_l2(image, other) == 0


def test_images_that_cannot_be_compared_are_refused():
    small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        tiled_l2(small, large)
    with pytest.raises(ValueError, match="at least 4 pixels"):
        tiled_l2(small, small)


@pytest.mark.parametrize("levels", [2, 256])
def test_large_tiles_lose_no_digits(rng, levels):
    image, other = rng.integers(0, levels, (2, 1000, 600, 3), np.uint8)
    difference = image.astype(np.float64) - other
    tiles = np.square(difference).reshape(4, 250, 4, 150, 3)
    expected = np.sqrt(tiles.mean((1, 3, 4))) / 255
    np.testing.assert_allclose(tile_distances(image, other), expected, rtol=1e-6)
