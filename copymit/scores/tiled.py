"""How much of an image is copied, where the whole is not: distances of tiles.

Source: Carlini et al. 2023, Extracting Training Data from Diffusion Models, section 4.2:
16 tiles of 128 pixels, the largest distance of any pair counts, and below 0.15 the image
is called extracted. So images that share only a background of one colour stay apart.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

GRID = 4
EXTRACTED_BELOW = 0.15
# A pair agrees if its distance is this share of those to other pictures. Their alpha is
# 0.5, beside the bound above; of photos 0.4 without a bound finds as many copies and
# confuses fewer, and noise on all of an image does not hide it (docs/decisions.md).
DISTINCT_BELOW = 0.4


def tile_distances(
    image: UInt8[np.ndarray, "H W 3"],
    other: UInt8[np.ndarray, "H W 3"],
    grid: int = GRID,
) -> Float[np.ndarray, "grid grid"]:
    """Root mean squared difference of the pixels, in [0, 1], for each aligned tile.

    Rows and columns that do not fill a tile are left out.

    Raises:
      ValueError: if the images differ in shape or are smaller than the grid.
    """
    if image.shape != other.shape or min(image.shape[:2]) < grid:
        raise ValueError(
            f"tiles of images of shapes {image.shape} and {other.shape}: give two images "
            f"of one shape with at least {grid} pixels a side"
        )
    height, width = (side // grid for side in image.shape[:2])
    cut = np.s_[: grid * height, : grid * width]
    difference = np.subtract(image[cut], other[cut], dtype=np.int16)
    rows = difference.reshape(grid, height, grid, -1).astype(np.float32)
    squares = np.einsum("ijkl,ijkl->ijk", rows, rows).sum(1, dtype=np.float64)
    return np.sqrt(squares / (height * rows.shape[-1])) / 255


def tiled_l2(
    image: UInt8[np.ndarray, "H W 3"],
    other: UInt8[np.ndarray, "H W 3"],
    grid: int = GRID,
) -> float:
    """Distance of the least similar tile, in [0, 1]; 0 for equal images."""
    return float(tile_distances(image, other, grid).max())


def compare_tiles(
    distance_to: Callable[[int], float], nearest: int, others: Sequence[int]
) -> tuple[float, float]:
    """Is the distance to the nearest picture, and its share of those to the next ones.

    Args:
      distance_to: picture -> tiled distance.
      others: the next different pictures.
    Returns:
      NaN for the share where there are no others.
    """
    distance = distance_to(nearest)
    if not len(others):
        return distance, np.nan
    mean = np.mean([distance_to(i) for i in others])
    return distance, float(distance / mean) if mean > 0 else 1.0


def agrees(
    distance: Float[np.ndarray, "..."], ratio: Float[np.ndarray, "..."]
) -> Bool[np.ndarray, "..."]:
    """Says whether pictures agree tile by tile; where there are no others, by distance."""
    return np.where(np.isnan(ratio), distance < EXTRACTED_BELOW, ratio < DISTINCT_BELOW)
