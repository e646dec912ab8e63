"""Training images that came back: each beside the generations that copy it.

A run enters; the images that most generations copy leave first.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from copymit.report.evaluated_run import EvaluatedRun, Generation, duplicated_weights
from copymit.report.gallery import shorten
from copymit.report.pictures import Detail, Picture, picture_maker

_MOST = 6  # copies that are shown of one image; the count says how many there are


class Copied(NamedTuple):
    """A generation that copies the image."""

    generation: Generation
    picture: Picture


class Returned(NamedTuple):
    """A training image that came back.

    Attributes:
      caption: its first, or None.
      weight: how often it was repeated in training, "" if it was not or nobody knows.
      num_copies: number of generations that copy it.
      copies: some of them, the most similar first.
    """

    id: str
    picture: Picture
    caption: str | None
    weight: str
    num_copies: int
    copies: list[Copied]


def list_returned(
    run: EvaluatedRun, generations: Sequence[Generation], size: int, detail: Detail
) -> list[Returned]:
    """Groups the generations that are copies by the training image they copy.

    Args:
      generations: of the run, the most similar first.
      size: number of training images, those with the most copies.
    """
    copies: dict[str, list[Generation]] = defaultdict(list)
    for generation in generations:
        if generation.is_copy and generation.copy_of:
            copies[generation.copy_of].append(generation)
    order = sorted(copies, key=lambda i: (-len(copies[i]), -copies[i][0].similarity, i))
    weights = duplicated_weights(run) or {}
    reference = picture_maker(run.read_reference, detail.large)
    generated = picture_maker(run.read_generation, detail.small)
    returned = []
    for image in order[:size]:
        texts = run.captions.get(image, ())
        returned.append(
            Returned(
                image,
                reference(image),
                shorten(texts[0]) if texts else None,
                f"{weights[image]:g}" if image in weights else "",
                len(copies[image]),
                [Copied(g, generated(g.id)) for g in copies[image][:_MOST]],
            )
        )
    return returned
