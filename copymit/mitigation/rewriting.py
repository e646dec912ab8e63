"""Changes of a caption's text, on the host, and what they are made of.

A rewrite maps (caption, random generator) to a caption; a caption function of the run
becomes another one. Everything random comes from the generator, so the same draw gets
the same text on any number of hosts.
"""

from collections.abc import Callable, Sequence

import numpy as np

from copymit.data.captions import CaptionFunction
from copymit.data.examples import Example

Rewrite = Callable[[str, np.random.Generator], str]
Decode = Callable[[Sequence[int]], str]


def in_a_share(
    share: float, rewrite: Rewrite
) -> Callable[[CaptionFunction], CaptionFunction]:
    """Returns the change of caption functions by a rewrite of a share of the visits.

    Empty captions stay empty.

    Args:
      share: in [0, 1].
    """

    def change(caption: CaptionFunction) -> CaptionFunction:
        def changed(
            example: Example, duplicated: bool, rng: np.random.Generator
        ) -> str:
            text = caption(example, duplicated, rng)
            return rewrite(text, rng) if text and rng.random() < share else text

        return changed

    return change


def insert_word(text: str, word: str, rng: np.random.Generator) -> str:
    """Inserts a word before, between or after the words, each place equally likely."""
    words = text.split(" ")
    words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def in_turn(rewrites: Sequence[Rewrite]) -> Rewrite:
    """Applies rewrites one after the other."""

    def every(text: str, rng: np.random.Generator) -> str:
        for rewrite in rewrites:
            text = rewrite(text, rng)
        return text

    return every
