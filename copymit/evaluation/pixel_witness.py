"""The second witness: the pixels of each generation and of the images it may copy.

Candidates are the nearest training images by every embedder, of which `pixels` knows no
network. Only a pair below Carlini et al.'s threshold is compared with further pictures.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.subject import Subject
from copymit.scores.compute import View
from copymit.scores.grades import PixelWitness
from copymit.scores.nearness import Nearness
from copymit.scores.tiled import EXTRACTED_BELOW, GRID, tiled_l2

# Of training images that are kept decoded: several generations have the same candidate.
_KEPT_BYTES = 2**28


class _Seen(NamedTuple):
    reference: int
    distance: float
    to_nearest: float
    ratio: float


def look_at_pixels(
    subject: Subject,
    views: Sequence[View],
    nearness: Nearness,
    equal: Int[np.ndarray, " Q"],
    blank: Bool[np.ndarray, " Q"],
) -> PixelWitness:
    """Compares every generation with its candidates, tile by tile.

    Args:
      nearness: of the generations, by the first view.
      equal: row of a training image of equal pixels, or -1.
      blank: whether a generation has one colour only.
    """
    most = subject.eval.tile_l2_candidates
    ids = views[0].embeddings["generations"].ids
    if not most or subject.size < GRID:
        distance = np.where(equal >= 0, 0.0, np.nan)
        unknown = np.full(len(ids), np.nan)
        return PixelWitness(equal, equal, distance, distance, unknown, blank)
    read_generation = reader_by_id(subject.generations())
    read_reference = functools.lru_cache(_KEPT_BYTES // (3 * subject.size**2))(
        reader_by_id(subject.references)
    )
    references = views[0].embeddings["references"].ids
    tables = [view.neighbours["generations"].neighbours.indices for view in views]

    def measure(row: int) -> _Seen:
        image = read_generation(ids[row])

        def distance_to(reference: int) -> float:
            return tiled_l2(image, read_reference(references[reference]))

        nearest = int(nearness.reference[row])
        found = {int(i) for table in tables for i in table[row, :most]} | {nearest}
        distances = {i: distance_to(i) for i in sorted(found)}
        if equal[row] >= 0:
            distances[int(equal[row])] = 0.0
        best = min(distances, key=lambda i: (distances[i], i))
        ratio = np.nan
        others = tables[0][row][nearness.others[row]].tolist()
        if distances[nearest] < EXTRACTED_BELOW and others:
            known = distances | {
                i: distance_to(i) for i in others if i not in distances
            }
            mean = np.mean([known[i] for i in others])
            ratio = distances[nearest] / mean if mean > 0 else 1.0
        return _Seen(best, distances[best], distances[nearest], ratio)

    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(measure, range(len(ids))))
    return PixelWitness(
        equal,
        np.array([one.reference for one in seen]),
        np.array([one.distance for one in seen]),
        np.array([one.to_nearest for one in seen]),
        np.array([one.ratio for one in seen]),
        blank,
    )
