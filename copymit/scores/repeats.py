"""Generations that are the same picture as others: what a model makes again and again."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from copymit.scores.similarity import Scores
from copymit.search.exact import Neighbours

UNIQUE = -1


def group_repeats(
    neighbours: Neighbours,
    pictures: Int[np.ndarray, " Q"],
    threshold: float,
    blank: Bool[np.ndarray, " Q"],
) -> Int[np.ndarray, " Q"]:
    """Finds generations that are one picture.

    That is what training images of such a similarity would be called, too, and all that
    is connected by such pairs.

    Args:
      neighbours: of each generation among the others.
      pictures: a number for each generation, equal for equal pixels.
      threshold: least cosine of two that are one picture.
      blank: generations of one colour, which repeat nothing.
    Returns:
      For each generation the first of its group, `UNIQUE` for one that is alone.
    """
    count = len(pictures)
    near = (neighbours.similarities >= threshold) & ~blank[:, None]
    near &= ~blank[neighbours.indices]
    rows, places = np.nonzero(near)
    first_of = np.unique(pictures, return_index=True)[1][pictures]
    of_equal = np.flatnonzero(~blank)
    starts = np.concatenate([rows, of_equal])
    ends = np.concatenate([neighbours.indices[rows, places], first_of[of_equal]])
    edges = coo_array((np.ones(len(starts), np.int8), (starts, ends)), (count, count))
    labels = connected_components(edges, directed=False)[1]
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    return np.where(sizes[labels] > 1, first[labels], UNIQUE)


def summarise_repeats(
    groups: Int[np.ndarray, " Q"], prompts: Sequence[str | None] | None
) -> Scores:
    """Counts repeated generations, their groups, and those of several prompts.

    Args:
      groups: see `group_repeats`.
      prompts: of each generation, where they are known.
    """
    repeated = np.flatnonzero(groups != UNIQUE)
    names, sizes = np.unique(groups[repeated], return_counts=True)
    scores: Scores = {
        "num_repeated_generations": len(repeated),
        "num_repeat_groups": len(names),
        "largest_repeat_group": int(sizes.max(initial=0)),
    }
    if prompts is not None:
        texts: dict[int, set[str | None]] = {}
        for row in repeated.tolist():
            texts.setdefault(int(groups[row]), set()).add(prompts[row])
        several = [group for group, found in texts.items() if len(found) > 1]
        scores["num_repeated_across_prompts"] = int(np.isin(groups, several).sum())
    return scores
