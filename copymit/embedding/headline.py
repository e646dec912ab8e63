"""Which embedder gives the headline where nobody named one.

In: the size at which images are compared, and the weights that are given. Out: a name,
and why.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from copymit.data.images import ImageError
from copymit.embedding.image_set import ImageSet
from copymit.embedding.pixels import PIXEL_SIZES
from copymit.embedding.sscd import find_sscd

LEAST_SIDE_PX = 64
"""Photos of this size are 0.86 similar to themselves at 224 px, by SSCD, and 0.20 to
others; at 32 px it is 0.47 and 0.38, so that nothing can be told there."""
STAND_IN = "efficientnet_lite0"
_PUBLISHED, _PACKAGED = "sscd_288", "sscd_288_int8"
_MAX_LOOKED_AT = 32


class Choice(NamedTuple):
    """An embedder that was chosen.

    Attributes:
      embedder: its name.
      reason: a sentence for whoever reads its numbers.
      stand_in: whether the one that is meant for this could not be had.
    """

    embedder: str
    reason: str
    stand_in: bool = False


def choose_embedder(side: int, weights: Mapping[str, str]) -> Choice:
    """Chooses SSCD, the copy detector, for all images but small ones.

    Args:
      side: of the images, in pixels.
      weights: paths by name, as `eval.weights`; a path of SSCD's published weights is
        preferred to the packaged ones.
    Raises:
      FileNotFoundError: there is nothing at that path.
    """
    if side < LEAST_SIDE_PX:
        return Choice(
            STAND_IN,
            f"Similarity is by {STAND_IN}, which knows what is pictured rather than "
            f"copies: images of {side} px are too small for SSCD, the copy detector "
            f"(least {LEAST_SIDE_PX} px).",
        )
    name = _PUBLISHED if weights.get("sscd_disc_mixup") else _PACKAGED
    kind = "published weights" if name == _PUBLISHED else "packaged 8-bit weights"
    try:
        find_sscd(name, weights.get("sscd_disc_mixup", ""))
    except (FileNotFoundError, ValueError) as error:
        if name == _PUBLISHED:
            raise
        return Choice(
            STAND_IN,
            f"{STAND_IN} stands in for SSCD, the copy detector, and misses copies that "
            f"SSCD finds: {error}",
            stand_in=True,
        )
    return Choice(
        name,
        f"Similarity is by {name}: SSCD, the copy detector, with its {kind}, for images "
        f"of at least {LEAST_SIDE_PX} px (here {side}).",
    )


def usual_side(images: ImageSet) -> int | None:
    """Returns the median of the short sides of some images.

    Of at most 32, spread over the set; None if none of them can be read.
    """

    def side(position: int) -> int | None:
        try:
            if images.read_size is not None:
                return min(images.read_size(position))
            return min(images.read(position).shape[:2])
        except ImageError:
            return None

    count = min(len(images.ids), _MAX_LOOKED_AT)
    positions = np.linspace(0, len(images.ids) - 1, count).astype(int).tolist()
    with ThreadPoolExecutor() as pool:
        sides = [s for s in pool.map(side, positions) if s is not None]
    return int(np.median(sides)) if sides else None


def deciding(embedders: Sequence[str]) -> list[str]:
    """Lists the embedders that call copies: the first, and the first of pixels."""
    headline, *others = embedders
    beside = [name for name in others if name in PIXEL_SIZES]
    return [headline] if headline in PIXEL_SIZES else [headline, *beside[:1]]
