"""Parts of images, each embedded as an image of its own: how a copied background is found.

A global descriptor of an image with a copied background and a new foreground may be far
from the training image; that of a tile without foreground is not.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Tile(NamedTuple):
    """One of `grid` x `grid` equal parts of an image.

    Attributes:
      row: from the top; `column`: from the left.
    """

    grid: int
    row: int
    column: int

    @property
    def name(self) -> str:
        """Is the tile's name in files."""
        return f"tile{self.grid}_{self.row}{self.column}"

    def cut(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Cuts the tile out; all tiles of an image have the same size."""
        height, width = (side // self.grid for side in image.shape[:2])
        top, left = self.row * height, self.column * width
        return image[top : top + height, left : left + width]


def list_tiles(grid: int) -> list[Tile]:
    """Lists the tiles of a grid row by row; none for 0.

    Raises:
      ValueError: for a grid that leaves the image whole, or tiles too small to see.
    """
    if grid == 0:
        return []
    if not 2 <= grid <= 8:
        raise ValueError(f"eval.tiles={grid}: use 0 for none, or 2 to 8 tiles a side")
    return [Tile(grid, row, column) for row in range(grid) for column in range(grid)]
