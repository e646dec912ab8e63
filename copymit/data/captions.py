"""Which caption an image is trained with: the paper's captioning styles.

A caption function maps (example, whether it is duplicated, random generator) to a text.
Everything random comes from the generator, which the pipeline derives from the seed,
the step and the position in the batch.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from copymit.data.captions_file import listed
from copymit.data.duplication import DuplicationKind
from copymit.data.examples import Example, ExampleSource
from copymit.data.sources import parse_token_ids

CaptionStyle = Literal["fixed", "class", "instance", "random", "unconditional"]

CaptionFunction = Callable[[Example, bool, np.random.Generator], str]

# Ids from here on are special tokens of CLIP's vocabulary; the original code stops here.
RANDOM_TOKEN_LIMIT = 49_400
RANDOM_CAPTION_TOKENS = 4


class VariedCaptions(tuple[str, ...]):
    """The captions of an image that a manifest lets vary: each visit draws one."""


def make_caption_function(
    style: CaptionStyle,
    duplication: DuplicationKind,
    class_names: Sequence[str],
    *,
    decode: Callable[[Sequence[int]], str],
    seed: int,
) -> CaptionFunction:
    """Returns the caption function of a run.

    Args:
      style: `fixed` ("An image"), `class` ("An image of {class}"), `instance` (the
        image's first caption), `random` (four random tokens, the same at every visit of
        the image, or those that the original code's captions file lists) or
        `unconditional` (the empty caption).
      duplication: with `partial`, duplicated images draw uniformly from all their
        captions at each visit, the others keep the first. Whatever it is, duplicated
        images with `VariedCaptions` draw, too.
      class_names: names of the labels, needed by `class`.
      decode: token ids to text, needed by `random`.
    Raises:
      ValueError: for settings that contradict each other or lack what they need.
    Source: Somepalli et al. 2023, captioning study; `nolevel`, `classlevel`,
      `instancelevel_blip` and `instancelevel_random` of the original code.
    """
    if style not in get_args(CaptionStyle):
        raise ValueError(
            f"data.caption_style={style!r} is not known: use one of "
            f"{', '.join(get_args(CaptionStyle))}"
        )
    if duplication == "partial" and style != "instance":
        raise ValueError(
            f"data.duplication='partial' varies the captions of an image, but "
            f"data.caption_style={style!r} gives it only one: use 'instance' or 'full'"
        )
    if style == "class" and not class_names:
        raise ValueError(
            "data.caption_style='class' needs classes, and this data set has none: "
            "sort the images into one folder per class, or choose another style"
        )
    if style == "fixed":
        return lambda example, duplicated, rng: "An image"
    if style == "unconditional":
        return lambda example, duplicated, rng: ""
    if style == "class":
        return lambda example, duplicated, rng: class_caption(example, class_names)
    if style == "random":
        return lambda example, duplicated, rng: random_caption(example, decode, seed)
    partial = duplication == "partial"
    return lambda example, duplicated, rng: (
        any_caption(example, rng)
        if duplicated and (partial or isinstance(example.captions, VariedCaptions))
        else example.captions[0]
    )


def class_caption(example: Example, class_names: Sequence[str]) -> str:
    """Names the class of an image in a sentence."""
    if example.label is None or not 0 <= example.label < len(class_names):
        raise ValueError(
            f"{example.example_id}: label {example.label} has no class name (there are "
            f"{len(class_names)}): correct the label or name the class"
        )
    return f"An image of {class_names[example.label]}"


def any_caption(example: Example, rng: np.random.Generator) -> str:
    """Draws one of an image's captions uniformly."""
    return example.captions[int(rng.integers(len(example.captions)))]


def random_caption(
    example: Example, decode: Callable[[Sequence[int]], str], seed: int
) -> str:
    """Decodes a token sequence that is random but fixed for the image.

    Where the first caption is the text of a list of token ids, as in a captions file of
    the original code, it is that sequence.
    """
    stored = parse_token_ids(example.captions[0]) if example.captions else None
    return decode(stored or random_token_ids(example.example_id, seed))


def random_token_ids(example_id: str, seed: int) -> list[int]:
    """Returns the token ids of an image's random caption, uniform below the limit."""
    ids = example_generator(seed, example_id).integers(
        RANDOM_TOKEN_LIMIT, size=RANDOM_CAPTION_TOKENS
    )
    return ids.tolist()


def example_generator(seed: int, example_id: str) -> np.random.Generator:
    """Makes the generator of an image: a stream that only seed and id determine."""
    digest = hashlib.blake2b(example_id.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest)])


def check_captioned(
    style: CaptionStyle, source: ExampleSource, indices: np.ndarray
) -> None:
    """Refuses to train images by their captions that have none: none are made up.

    Raises:
      ValueError: names the images, and what lies beside them that cannot be read.
    """
    bare = indices[source.caption_counts[indices] == 0]
    if style != "instance" or not len(bare):
        return
    fault = source.provenance.caption_fault
    raise ValueError(
        f"data.caption_style='instance' trains images by their own captions, and "
        f"{len(bare)} of {len(indices)} have none: "
        + listed([source.example_ids[int(i)] for i in bare])
        + (f". {fault}" if fault else "")
        + ". Give data.captions=FILE, or a text beside each image (x.txt beside x.png), or "
        "choose what they all get: data.caption_style='class' (An image of FOLDER), "
        "'fixed' (An image) or 'unconditional'"
    )


def check_captions(
    duplication: DuplicationKind,
    example_ids: Sequence[str],
    duplicated: np.ndarray,
    caption_counts: np.ndarray,
) -> None:
    """Refuses `partial` duplication of images that have nothing to vary.

    Raises:
      ValueError: names the duplicated images with a single caption.
    """
    if duplication != "partial":
        return
    single = [
        example_ids[int(i)] for i in np.flatnonzero(duplicated & (caption_counts < 2))
    ]
    if single:
        raise ValueError(
            f"data.duplication='partial' needs several captions per duplicated image; "
            f"{len(single)} have one: {', '.join(single[:10])}. Give more captions, or "
            "use data.duplication='full'"
        )
