"""Mitigations that change the text of a caption, on the host.

Each takes the caption function of the run and returns another one.
"""

import numpy as np

from copymit.data.captions import CaptionFunction, any_caption
from copymit.data.examples import Example


def multiple_captions(caption: CaptionFunction) -> CaptionFunction:
    """Draws one of the image's captions uniformly at every visit (MC).

    Images with a single caption keep what `caption` gives them.

    Source: Somepalli et al. 2023, training-time mitigations; `allcaps` in their code.
    """

    def varied(example: Example, duplicated: bool, rng: np.random.Generator) -> str:
        if len(example.captions) < 2:
            return caption(example, duplicated, rng)
        return any_caption(example, rng)

    return varied
