"""Where generations come from: their prompted images, and which of them belong together.

A table of prompts enters; rows of references and clusters of generations leave.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

UNKNOWN_ROW = -1


class Provenance(NamedTuple):
    """What is known about where generations and references come from.

    Attributes:
      prompted: row of the reference whose caption prompted each generation, -1 where it
        is not known or not among the references; None where no prompt is known.
      duplicated: whether each reference was duplicated in training, or None.
      clusters: which generations are not independent of each other, see
        `dependent_clusters`; None takes each for independent.
    """

    prompted: Int[np.ndarray, " Q"] | None
    duplicated: Bool[np.ndarray, " R"] | None
    clusters: Int[np.ndarray, " Q"] | None = None

    def clusters_of(
        self, generations: Sequence[str], chosen: Sequence[str]
    ) -> Int[np.ndarray, " P"] | None:
        """Picks the clusters of some of the generations, in their order."""
        if self.clusters is None:
            return None
        cluster = dict(zip(generations, self.clusters, strict=True))
        return np.array([cluster[image_id] for image_id in chosen])


def trace_provenance(
    prompts: pd.DataFrame | None,
    generations: Sequence[str],
    references: Collection[str],
    duplicated: Bool[np.ndarray, " R"] | None,
) -> Provenance:
    """Looks up the image and the prompt behind each generation, as far as they are known.

    Args:
      prompts: columns id, prompt and perhaps example_id, the image whose caption the
        prompt is, None where it is of none; a row for each generation. None where no
        prompts are known.
      generations, references: the ids that could be read, in order.
      duplicated: of each reference.
    """
    if prompts is None:
        return Provenance(None, duplicated)
    table = prompts.set_index("id").loc[list(generations)]
    texts = [_text(prompt) for prompt in table["prompt"]]
    if "example_id" not in table:
        return Provenance(None, duplicated, dependent_clusters(None, texts))
    images = [_text(example_id) for example_id in table["example_id"]]
    row = {name: i for i, name in enumerate(references)}
    prompted = np.array([row.get(image or "", UNKNOWN_ROW) for image in images])
    clusters = dependent_clusters(images, texts)
    return Provenance(prompted.astype(np.int64), duplicated, clusters)


def dependent_clusters(
    images: Sequence[str | None] | None, prompts: Sequence[str | None]
) -> Int[np.ndarray, " Q"]:
    """Numbers what resembles each other: generations of one image, or else one prompt.

    Args:
      images: whose caption prompted each generation; None where it is not known.
      prompts: of each generation; None or "" where it is not known, or there was none:
        such a generation is its own cluster.
    """
    labels = [
        ("image", image) if image else ("prompt", prompt) if prompt else ("own", str(i))
        for i, (image, prompt) in enumerate(
            zip(images or [None] * len(prompts), prompts, strict=True)
        )
    ]
    number: dict[tuple[str, str], int] = {}
    return np.array([number.setdefault(label, len(number)) for label in labels])


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
