"""Multiple captions (MC): another caption of the image at every visit."""

import numpy as np

from copymit.data.captions import CaptionFunction, any_caption
from copymit.data.examples import Example
from copymit.mitigation.record import Mitigation, Setting


def multiple_captions(caption: CaptionFunction) -> CaptionFunction:
    """Draws one of the image's captions uniformly at every visit.

    Images with a single caption keep what `caption` gives them.
    """

    def varied(example: Example, duplicated: bool, rng: np.random.Generator) -> str:
        if len(example.captions) < 2:
            return caption(example, duplicated, rng)
        return any_caption(example, rng)

    return varied


MITIGATIONS = (
    Mitigation(
        "multiple_captions",
        ("MC", "allcaps"),
        "one of the image's captions at random, at every visit",
        (
            Setting(
                "train.multiple_captions", False, "whether every visit draws a caption"
            ),
        ),
        strength=True,
        published="20 BLIP captions an image",
        changed="",
        source="Somepalli et al. 2023; `allcaps` of somepago/DCR",
        label="MC",
        tried=(True,),
        needs=frozenset({"captions of images", "several captions"}),
        order=-1,  # rewrites act on what it drew
        caption=lambda values, words: multiple_captions,
    ),
)
