"""One ScaNN index: its settings by size, its tuning, its building and its answers.

Unit vectors of one part of the references enter; their nearest ones leave, with rows
counted from the start of the part.
"""

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int

from copymit.search.exact import Neighbours


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """What ScaNN builds, and how far it looks.

    Attributes:
      kind: `brute_force`, `ah` (score all, then reorder) or `tree_ah` (partition too).
      num_leaves: partitions; 0 without a tree.
      num_leaves_to_search: partitions that each query visits; 0 without a tree.
      reorder: candidates that are scored again in float32; 0 for brute force.
    """

    kind: Literal["brute_force", "ah", "tree_ah"]
    num_leaves: int = 0
    num_leaves_to_search: int = 0
    reorder: int = 0


def scann_settings(num_references: int, num_neighbours: int) -> ScannSettings:
    """Chooses the kind of index by size; what to tune starts at a generous value.

    Source: ScaNN's docs/algorithms.md: brute force below 20,000 points, asymmetric
      hashing with reordering below 100,000, about sqrt(N) partitions above.
    """
    reorder = min(num_references, max(50, 5 * num_neighbours))
    if num_references < 20_000:
        return ScannSettings("brute_force")
    if num_references < 100_000:
        return ScannSettings("ah", reorder=reorder)
    leaves = round(math.sqrt(num_references))
    return ScannSettings("tree_ah", leaves, max(1, leaves // 10), reorder)


def smaller_settings(
    tuned: ScannSettings, num_references: int, num_neighbours: int
) -> ScannSettings:
    """Fits settings that a full part was tuned to, to a part with fewer references."""
    if tuned.kind == "brute_force":
        return tuned
    own = scann_settings(num_references, num_neighbours)
    if own.kind == "brute_force":
        return own
    share = tuned.num_leaves_to_search / tuned.num_leaves if tuned.num_leaves else 0.1
    return dataclasses.replace(
        own,
        num_leaves_to_search=math.ceil(share * own.num_leaves),
        reorder=min(num_references, max(own.reorder, tuned.reorder)),
    )


def tune_scann(
    measure: Callable[[ScannSettings], float],
    settings: ScannSettings,
    *,
    num_references: int,
    recall_target: float,
) -> ScannSettings:
    """Lowers the cost of a search as far as the recall target allows.

    First the fewest leaves with much reordering, then the least reordering with those
    leaves. A sample's recall is noisy, so half of the error allowed is kept in hand.

    Args:
      measure: recall@1 under given settings.
    """
    target = 1 - (1 - recall_target) / 2
    much = max(settings.reorder, min(num_references, 1000))
    most = dataclasses.replace(settings, reorder=much)
    leaves = _doublings(1, settings.num_leaves) if settings.num_leaves else [0]
    for num_leaves_to_search in leaves:
        most = dataclasses.replace(most, num_leaves_to_search=num_leaves_to_search)
        if measure(most) >= target:
            break
    else:
        return dataclasses.replace(most, reorder=min(num_references, 10_000))
    for reorder in _doublings(settings.reorder, most.reorder):
        trial = dataclasses.replace(most, reorder=reorder)
        if measure(trial) >= target:
            return trial
    return most


def scann_recipe(num_references: int, settings: ScannSettings) -> dict[str, Any]:
    """Returns everything that decides how an index is built, as JSON holds it."""
    recipe: dict[str, Any] = {"kind": settings.kind}
    if settings.kind == "tree_ah":
        # Without `spherical` unit vectors need ten times the leaves for one recall.
        recipe["tree"] = {
            "num_leaves": settings.num_leaves,
            "training_sample_size": min(num_references, 250 * settings.num_leaves),
            "spherical": True,
        }
    if settings.kind != "brute_force":
        # Two dimensions a block are ScaNN's guidance. Its anisotropic threshold of 0.2
        # takes half as long again to build and, with reordering, finds no more.
        recipe["hash"] = {
            "dimensions_per_block": 2,
            "training_sample_size": min(num_references, 20_000),
        }
    return recipe


def build_scann(
    scann: Any,
    references: Float32[np.ndarray, "R D"],
    recipe: dict[str, Any],
    settings: ScannSettings,
) -> Any:
    """Builds a searcher, which holds a copy of the references."""
    # Every call of `ask_scann` says how many neighbours it wants.
    builder = scann.scann_ops_pybind.builder(references, 1, "dot_product")
    if settings.kind == "brute_force":
        return builder.score_brute_force().build()
    if settings.kind == "tree_ah":
        builder = builder.tree(
            num_leaves_to_search=settings.num_leaves_to_search, **recipe["tree"]
        )
    return builder.score_ah(**recipe["hash"]).reorder(settings.reorder).build()


def ask_scann(
    searcher: Any,
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    exclude: Int[np.ndarray, " Q"],
    wanted: int,
    settings: ScannSettings,
) -> Neighbours:
    """Asks for `wanted` neighbours and drops the excluded one.

    Where fewer than `k` are left the similarity is minus infinity.
    """
    indices, similarities = searcher.search_batched_parallel(
        queries,
        final_num_neighbors=wanted,
        pre_reorder_num_neighbors=settings.reorder or None,
        leaves_to_search=settings.num_leaves_to_search or None,
    )
    # Where the visited leaves hold too few points ScaNN fills up with index 0 and NaN,
    # and where all queries come short it returns fewer columns.
    missing = [(0, 0), (0, max(0, k - indices.shape[1]))]
    indices = np.pad(indices.astype(np.int32), missing)
    similarities = np.pad(similarities, missing, constant_values=np.nan)
    lost = np.isnan(similarities) | (indices == exclude[:, None])
    similarities = np.where(lost, -np.inf, np.clip(similarities, -1, 1))
    order = np.lexsort((indices, -similarities))[:, :k]
    return Neighbours(
        np.take_along_axis(indices, order, 1),
        np.take_along_axis(similarities, order, 1).astype(np.float32),
    )


def import_scann() -> Any | None:
    """Returns the module, or None where it cannot be installed."""
    if sys.platform != "linux":
        return None
    try:
        return importlib.import_module("scann")
    except ImportError:
        return None


def _doublings(first: int, last: int) -> list[int]:
    """Returns first, 2 first, 4 first, ... and last."""
    steps = max(0, math.ceil(math.log2(last / first)))
    return [first * 2**step for step in range(steps)] + [last]
