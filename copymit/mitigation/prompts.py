"""Mitigations that change the text of a caption, on the host.

A rewrite maps (caption, random generator) to a caption; a caption function of the run
becomes another one. Everything random comes from the generator, so the same draw gets
the same text on any number of hosts. A strength of 0 draws nothing and changes nothing.

Source: Somepalli et al. 2023, mitigations in training and at inference;
`prompt_augmentation` and the data set of their code.
"""

from collections.abc import Callable, Sequence

import numpy as np

from copymit.data.captions import (
    RANDOM_CAPTION_TOKENS,
    RANDOM_TOKEN_LIMIT,
    CaptionFunction,
    any_caption,
)
from copymit.data.examples import Example

Rewrite = Callable[[str, np.random.Generator], str]
Decode = Callable[[Sequence[int]], str]

# Random numbers lie below this.
RANDOM_NUMBER_LIMIT = 100_000


def multiple_captions(caption: CaptionFunction) -> CaptionFunction:
    """Draws one of the image's captions uniformly at every visit (MC).

    Images with a single caption keep what `caption` gives them.

    Source: `allcaps` in the original code.
    """

    def varied(example: Example, duplicated: bool, rng: np.random.Generator) -> str:
        if len(example.captions) < 2:
            return caption(example, duplicated, rng)
        return any_caption(example, rng)

    return varied


def rewritten(caption: CaptionFunction, rewrite: Rewrite) -> CaptionFunction:
    """Rewrites whatever a caption function returns; empty captions stay empty."""

    def changed(example: Example, duplicated: bool, rng: np.random.Generator) -> str:
        text = caption(example, duplicated, rng)
        return rewrite(text, rng) if text else text

    return changed


def with_probability(probability: float, rewrite: Rewrite) -> Rewrite:
    """Rewrites a share of the captions and leaves the others alone.

    Args:
      probability: in [0, 1]; 0.1 in the paper's training.
    """

    def sometimes(text: str, rng: np.random.Generator) -> str:
        if probability and rng.random() < probability:
            return rewrite(text, rng)
        return text

    return sometimes


def random_caption(decode: Decode) -> Rewrite:
    """Replaces the caption by four random tokens (RC).

    Args:
      decode: token ids to text; ids are drawn below 49,400, where special ones begin.
    Source: `randrepl` in the original code.
    """

    def replace(text: str, rng: np.random.Generator) -> str:
        del text
        ids = rng.integers(RANDOM_TOKEN_LIMIT, size=RANDOM_CAPTION_TOKENS)
        return decode(ids.tolist())

    return replace


def random_tokens(count: int, decode: Decode) -> Rewrite:
    """Inserts random tokens, each at a uniform gap between words (RT).

    Args:
      count: of insertions; 2 in the paper's training.
      decode: token ids to text.
    Source: `randwordadd` (training), `rand_word_add` (inference) in the original code.
    """

    def insert(text: str, rng: np.random.Generator) -> str:
        for _ in range(count):
            token = decode([int(rng.integers(RANDOM_TOKEN_LIMIT))])
            text = insert_word(text, token, rng)
        return text

    return insert


def word_repetition(count: int) -> Rewrite:
    """Inserts words of the caption again, each at a uniform gap between words (CWR).

    Args:
      count: of insertions; 2 in the paper's training.
    Source: `wordrepeat` (training), `rand_word_repeat` (inference) in the original code.
    """

    def repeat(text: str, rng: np.random.Generator) -> str:
        words = text.split(" ")
        for _ in range(count):
            word = words[int(rng.integers(len(words)))]
            text = insert_word(text, word, rng)
        return text

    return repeat


def random_numbers(count: int) -> Rewrite:
    """Inserts random numbers below 100,000, each at a uniform gap (RNA).

    Args:
      count: of insertions; 2 in the original evaluation, 4 for memorised prompts.
    Source: `rand_numb_add` in the original code.
    """

    def insert(text: str, rng: np.random.Generator) -> str:
        for _ in range(count):
            number = str(int(rng.integers(RANDOM_NUMBER_LIMIT)))
            text = insert_word(text, number, rng)
        return text

    return insert


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
