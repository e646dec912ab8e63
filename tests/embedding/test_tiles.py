"""Tiles of images as sets of their own."""

import numpy as np
import pytest

from copymit.embedding.image_set import ImageSet
from copymit.embedding.tiles import list_tiles, tile_set


def test_tiles_cover_the_image_once(rng):
    image = rng.integers(0, 256, (12, 18, 3), dtype=np.uint8)
    tiles = list_tiles(3)
    assert len({tile.name for tile in tiles}) == 9
    rows = [
        np.concatenate([tile.cut(image) for tile in tiles[i : i + 3]], axis=1)
        for i in (0, 3, 6)
    ]
    np.testing.assert_array_equal(np.concatenate(rows), image)


def test_what_does_not_fill_a_tile_is_left_out(rng):
    image = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    assert {tile.cut(image).shape for tile in list_tiles(2)} == {(3, 3, 3)}


def test_a_set_of_tiles_keeps_the_ids_and_shows_its_tile(rng):
    pixels = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = ImageSet("references", ["a", "b", "c"], pixels.__getitem__)
    lower_left = list_tiles(2)[2]
    seen = tile_set(images, lower_left)
    assert (seen.name, seen.ids) == ("references", ["a", "b", "c"])
    np.testing.assert_array_equal(seen.read(1), pixels[1, 4:, :4])


def test_no_tiles_are_asked_for_by_zero_and_odd_grids_are_refused():
    assert list_tiles(0) == []
    for grid in (1, -2, 9):
        with pytest.raises(ValueError, match=rf"eval\.tiles={grid}: use 0 for none"):
            list_tiles(grid)
