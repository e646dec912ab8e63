"""Random caption (RC): some captions become four random tokens."""

import numpy as np

from copymit.data.captions import RANDOM_CAPTION_TOKENS, RANDOM_TOKEN_LIMIT
from copymit.mitigation.record import Mitigation, Setting
from copymit.mitigation.rewriting import Decode, Rewrite, in_a_share


def random_caption(decode: Decode) -> Rewrite:
    """Replaces the caption by four random tokens.

    Args:
      decode: token ids to text; ids are drawn below 49,400, where special ones begin.
    """

    def replace(text: str, rng: np.random.Generator) -> str:
        del text
        ids = rng.integers(RANDOM_TOKEN_LIMIT, size=RANDOM_CAPTION_TOKENS)
        return decode(ids.tolist())

    return replace


MITIGATIONS = (
    Mitigation(
        "random_caption",
        ("RC", "randrepl"),
        "some captions become four random tokens",
        (
            Setting(
                "train.random_caption", 0.0, "share of the visits with a random caption"
            ),
        ),
        strength=0.1,
        published="0.1 of the visits",
        changed="",
        source="Somepalli et al. 2023; `randrepl` of somepago/DCR",
        label="RC",
        tried=(0.1, 0.4),
        needs=frozenset(
            {"captions of images", "captions that are embedded while training"}
        ),
        caption=lambda values, words: in_a_share(
            values["random_caption"], random_caption(words.decode)
        ),
    ),
)
