"""The second witness: the pixels of each generation and of the images it may copy.

Candidates are the nearest training images by every embedder, of which `pixels` knows no
network. Only a generation that may be called a copy is compared with further pictures.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.subject import Subject
from copymit.scores.compute import View
from copymit.scores.grades import Finding, PixelWitness, may_be_copies
from copymit.scores.tiled import GRID, compare_tiles, tiled_l2

# Of training images that are kept decoded: several generations have the same candidate.
_KEPT_BYTES = 2**28


class _Seen(NamedTuple):
    reference: int
    distance: float
    to_nearest: list[float]
    ratio: list[float]


def look_at_pixels(
    subject: Subject,
    views: Sequence[View],
    deciding: Mapping[str, Finding],
    equal: Int[np.ndarray, " Q"],
    blank: Bool[np.ndarray, " Q"],
) -> PixelWitness:
    """Compares every generation with its candidates, tile by tile.

    Args:
      deciding: what each embedder that decides says of the generations.
      equal: row of a training image of equal pixels, or -1.
      blank: whether a generation has one colour only.
    """
    most = subject.eval.tile_l2_candidates
    ids = views[0].embeddings["generations"].ids
    if not most or subject.size < GRID:
        distance = np.where(equal >= 0, 0.0, np.nan)
        unknown = np.full((len(deciding), len(ids)), np.nan)
        return PixelWitness(equal, equal, distance, unknown, unknown, blank)
    read_generation = reader_by_id(subject.generations())
    read_reference = functools.lru_cache(_KEPT_BYTES // (3 * subject.size**2))(
        reader_by_id(subject.references)
    )
    references = views[0].embeddings["references"].ids
    tables = {v.embedder: v.neighbours["generations"].neighbours.indices for v in views}
    rate = subject.eval.false_discovery_rate
    plausible = {name: may_be_copies(found, rate) for name, found in deciding.items()}

    def measure(row: int) -> _Seen:
        image = read_generation(ids[row])

        @functools.cache
        def distance_to(reference: int) -> float:
            if reference == equal[row]:
                return 0.0
            return tiled_l2(image, read_reference(references[reference]))

        compared = []
        candidates = {int(i) for table in tables.values() for i in table[row, :most]}
        for name, (nearness, _) in deciding.items():
            near = nearness.others[row] & plausible[name][row]
            nearest = int(nearness.reference[row])
            others = tables[name][row][near].tolist()
            compared.append(compare_tiles(distance_to, nearest, others))
            candidates.add(nearest)
        if equal[row] >= 0:
            candidates.add(int(equal[row]))
        best = min(sorted(candidates), key=distance_to)
        return _Seen(best, distance_to(best), *map(list, zip(*compared, strict=True)))

    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(measure, range(len(ids))))
    return PixelWitness(
        equal,
        np.array([one.reference for one in seen]),
        np.array([one.distance for one in seen]),
        np.array([one.to_nearest for one in seen]).T,
        np.array([one.ratio for one in seen]).T,
        blank,
    )
