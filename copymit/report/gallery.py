"""Pictures for the report: which generations to show, and images as `data:` addresses.

A run enters; galleries of cards leave, their images encoded and small.
"""

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from copymit.report.evaluated_run import (
    EvaluatedRun,
    Generation,
    duplicated_weights,
)

# Encodings in the order in which they are tried until an image fits: longest side in
# pixels, WebP quality. A default page has fewer than 200 images, so at most 8 MB.
_ENCODINGS = [(256, 88), (256, 75), (224, 60), (192, 40), (128, 30)]
_MAX_BYTES = 24 * 1024
_PIXELATED_PX = 128  # images up to here are kept exactly, and enlarged as squares
_MAX_TEXT = 160  # characters of a caption or prompt
_SEED = 0


class Picture(NamedTuple):
    """An encoded image: `data:` address, size in pixels, whether to enlarge squarely."""

    address: str
    width: int
    height: int
    pixelated: bool


class Shown(NamedTuple):
    """A training image in a card.

    Attributes:
      caption: its first, or None; `more_captions` counts the rest.
      weight: how often it was repeated, "" if it was not or nobody knows.
    """

    id: str
    picture: Picture
    caption: str | None
    more_captions: int
    weight: str


class Card(NamedTuple):
    """A generation beside its nearest training image.

    Attributes:
      prompted: the training image that prompted it, if it is another one.
      is_prompted: whether the nearest is the one that prompted it.
      same_nearest: number of generations that are nearest to the same training image.
    """

    generation: Generation
    picture: Picture
    nearest: Shown
    prompted: Shown | None
    is_prompted: bool
    same_nearest: int


class Gallery(NamedTuple):
    """Cards under a heading."""

    heading: str
    note: str
    cards: list[Card]


def make_galleries(
    run: EvaluatedRun, generations: Sequence[Generation], size: int
) -> list[Gallery]:
    """Shows the most copied generations, and fewer typical and least copied ones.

    The most copied are one for each training image, or a single often copied image
    would fill the gallery. The typical ones are drawn at random, always the same.

    Args:
      generations: most similar first.
      size: number of the most copied; a third of it of the others.
    """
    if size == 0:
        return []
    best: dict[str, Generation] = {}
    for generation in generations:
        best.setdefault(generation.reference, generation)
    most = list(best.values())[:size]
    chosen = [
        (
            "Most copied",
            "The generations most similar to a training image, one for each training "
            "image, most similar first.",
            most,
        )
    ]
    few = max(1, size // 3)
    if len(generations) > len(most):
        rng = np.random.default_rng(_SEED)
        rows = rng.choice(len(generations), min(few, len(generations)), replace=False)
        chosen += [
            (
                "Typical",
                "Drawn at random from all generations, not chosen by anyone.",
                [generations[i] for i in sorted(rows)],
            ),
            ("Least copied", "The other end of the list.", list(generations[-few:])),
        ]
    make_card = _card_maker(run, generations)
    return [
        Gallery(heading, note, [make_card(g) for g in part])
        for heading, note, part in chosen
    ]


def picture_maker(read: Callable[[str], np.ndarray]) -> Callable[[str], Picture]:
    """Makes a function id -> `Picture` that reads and encodes every image once."""
    made: dict[str, Picture] = {}

    def make(image_id: str) -> Picture:
        if image_id not in made:
            made[image_id] = encode_picture(read(image_id), image_id)
        return made[image_id]

    return make


def encode_picture(image: UInt8[np.ndarray, "H W 3"], name: str) -> Picture:
    """Encodes an image as a `data:` address of at most about 32 kB.

    Raises:
      ValueError: if it is not an image of uint8 RGB.
    """
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        raise ValueError(
            f"image {name!r} is {image.dtype} of shape {image.shape}; give uint8 of shape "
            "(height, width, 3)"
        )
    full = Image.fromarray(image)
    if max(full.size) <= _PIXELATED_PX:
        data = _webp(full, lossless=True)
        if len(data) <= _MAX_BYTES:
            return Picture(_address(data), *full.size, True)
    for side, quality in _ENCODINGS:
        small = full.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _webp(small, quality=quality)
        if len(data) <= _MAX_BYTES:
            break
    return Picture(_address(data), *small.size, max(full.size) <= _PIXELATED_PX)


def shorten(text: str) -> str:
    """Cuts a text that is too long to show."""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _card_maker(
    run: EvaluatedRun, generations: Sequence[Generation]
) -> Callable[[Generation], Card]:
    weights = duplicated_weights(run) or {}
    same_nearest = Counter(g.reference for g in generations)
    generation_picture = picture_maker(run.read_generation)
    reference_picture = picture_maker(run.read_reference)

    def show(reference: str) -> Shown:
        return _show(reference, reference_picture(reference), run.captions, weights)

    def make(generation: Generation) -> Card:
        is_prompted = generation.prompted == generation.reference
        other = None if is_prompted else generation.prompted
        return Card(
            generation._replace(
                prompt=generation.prompt and shorten(generation.prompt),
                prompt_used=generation.prompt_used and shorten(generation.prompt_used),
            ),
            generation_picture(generation.id),
            show(generation.reference),
            None if other is None else show(other),
            is_prompted,
            same_nearest[generation.reference],
        )

    return make


def _show(
    reference: str,
    picture: Picture,
    captions: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
) -> Shown:
    texts = captions.get(reference, ())
    return Shown(
        reference,
        picture,
        shorten(texts[0]) if texts else None,
        max(0, len(texts) - 1),
        f"{weights[reference]:g}" if reference in weights else "",
    )


def _webp(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", method=4, **options)
    return buffer.getvalue()


def _address(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
