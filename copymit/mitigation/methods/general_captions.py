"""General captions: at some visits an image has the least specific caption there is.

A caption that no other image has is a key to its image; "An image of church" is not. As
the general one serves the sentence of the image's class where it has a class, and else
the shortest of its captions, which names the least.
"""

import numpy as np

from copymit.data.captions import CaptionFunction, class_caption
from copymit.data.examples import Example
from copymit.mitigation.record import Mitigation, Setting, Values, Words


def general_captions(
    caption: CaptionFunction, share: float, class_names: tuple[str, ...]
) -> CaptionFunction:
    """Replaces captions at a share of the visits by general ones.

    Args:
      class_names: of the data set; () without classes.
    """

    def general(example: Example, duplicated: bool, rng: np.random.Generator) -> str:
        text = caption(example, duplicated, rng)
        if not text or rng.random() >= share:
            return text
        if class_names and example.label is not None:
            return class_caption(example, class_names)
        return min(example.captions, key=lambda other: len(other.split()))

    return general


def _caption(values: Values, words: Words):
    share, names = values["general_captions"], tuple(words.class_names)
    return lambda caption: general_captions(caption, share, names)


MITIGATIONS = (
    Mitigation(
        "general_captions",
        ("general", "use_clean_prompts"),
        "some captions become the image's least specific one: its class or the shortest",
        (
            Setting(
                "train.general_captions",
                0.0,
                "share of the visits with the least specific caption",
            ),
        ),
        strength=0.5,
        published="all captions, made general by a language model in less than five words; "
        "with them, images and embeddings mixed with those of a second data set, by 0.1 "
        "and 0.5",
        changed="a share of the visits, so that the model still learns the captions; no "
        "language model and no second data set: the general caption is one that the data "
        "have. Give captions of your own in the captions file, the short ones too",
        source="Li et al. 2023, Mitigate Replication and Copying in Diffusion Models with "
        "Generalized Caption and Dual Fusion Enhancement; "
        "HowardLi0816/dual-fusion-diffusion",
        label="general captions",
        tried=(0.5, 0.9),
        needs=frozenset(
            {"captions of images", "captions that are embedded while training"}
        ),
        caption=_caption,
    ),
)
