"""Tiles of images."""

import numpy as np
import pytest

from copymit.embedding.tiles import list_tiles


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


def test_no_tiles_are_asked_for_by_zero_and_odd_grids_are_refused():
    assert list_tiles(0) == []
    for grid in (1, -2, 9):
        with pytest.raises(ValueError, match=rf"eval\.tiles={grid}: use 0 for none"):
            list_tiles(grid)
