"""Approximate nearest references with ScaNN, tuned to a recall target and checked.

Unit vectors enter; the `k` most similar references of each query leave, with the
settings that were used and their recall against exact search on sampled queries.
"""

import dataclasses
import importlib
import logging
import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from copymit.search.exact import (
    Neighbours,
    SearchResult,
    exact_neighbours,
    validated,
)

logger = logging.getLogger(__name__)

# Recall is measured on, and settings are tuned on, at most this many queries each.
RECALL_QUERIES = 1_000
# Two float32 dot products of one pair of unit vectors differ by less than this.
TIE_TOLERANCE = 1e-5


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


def search_scann(
    queries: Float[np.ndarray, "Q D"],
    references: Float[np.ndarray, "R D"],
    k: int,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    settings: ScannSettings | None = None,
    recall_target: float = 0.99,
    seed: int = 0,
) -> SearchResult:
    """Finds the nearest references of each query with ScaNN, and measures its recall.

    Where ScaNN cannot be imported (it has wheels for Linux only) the search is exact.

    Args:
      settings: used as they are; None chooses them by the number of references and
        tunes them to `recall_target` on queries that the recall is not measured on.
    Raises:
      ValueError: as `search_exact`.
    Source: Guo et al. 2020, and ScaNN's own guidance on sizes (docs/algorithms.md).
    """
    queries, references, exclude = validated(queries, references, k, exclude)
    scann = _import_scann()
    if scann is None:
        logger.warning("ScaNN is not installed here: searching exactly instead")
        neighbours = exact_neighbours(queries, references, k, exclude)
        return SearchResult(neighbours, "exact", {}, 1.0, 1.0)
    # The excluded reference takes one place among the results.
    wanted = k + int((exclude >= 0).any())
    chosen = settings or scann_settings(len(references), wanted)
    if chosen.kind != "brute_force" and chosen.reorder < wanted:
        raise ValueError(
            f"settings.reorder is {chosen.reorder}: reorder at least the {wanted} "
            "neighbours that are wanted"
        )
    searcher = _build_scann(scann, references, wanted, chosen)
    tuning, measuring = _split_sample(len(queries), seed)

    def find(rows: np.ndarray, trial: ScannSettings) -> Neighbours:
        return _search_built(
            searcher, queries[rows], references, k, exclude[rows], wanted, trial
        )

    def exact(rows: np.ndarray) -> Neighbours:
        return exact_neighbours(queries[rows], references, k, exclude[rows])

    if settings is None and chosen.kind != "brute_force":
        truth = exact(tuning)
        chosen = tune_scann(
            lambda trial: compute_recall(find(tuning, trial), truth)[0],
            chosen,
            num_references=len(references),
            recall_target=recall_target,
        )
    neighbours = find(np.arange(len(queries)), chosen)
    measured = Neighbours(*(field[measuring] for field in neighbours))
    recall, recall_at_k = compute_recall(measured, exact(measuring))
    if recall < recall_target:
        logger.warning(
            "ScaNN's recall@1 is %.4f, below the target of %.4f: search exactly, or "
            "give settings with more leaves to search",
            recall,
            recall_target,
        )
    used = dataclasses.asdict(chosen) | {"recall_queries": len(measuring)}
    return SearchResult(neighbours, "scann", used, recall, recall_at_k)


def scann_settings(num_references: int, num_neighbours: int) -> ScannSettings:
    """Chooses the kind of index by size; what to tune starts at a generous value.

    Source: ScaNN's docs/algorithms.md: brute force below 20,000 points, asymmetric
      hashing with reordering below 100,000, about sqrt(N) partitions above.
    """
    reorder = min(num_references, max(100, 10 * num_neighbours))
    if num_references < 20_000:
        return ScannSettings("brute_force")
    if num_references < 100_000:
        return ScannSettings("ah", reorder=reorder)
    leaves = round(math.sqrt(num_references))
    return ScannSettings("tree_ah", leaves, max(1, leaves // 10), reorder)


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


def compute_recall(found: Neighbours, exact: Neighbours) -> tuple[float, float]:
    """Returns recall@1 and recall@k of `found`.

    A neighbour counts when it is as similar as an exact one, whichever of several
    equal references was returned: exact duplicates have no order of their own.
    """
    first = found.similarities[:, 0] >= exact.similarities[:, 0] - TIE_TOLERANCE
    every = found.similarities >= exact.similarities[:, -1:] - TIE_TOLERANCE
    return float(first.mean()), float(every.mean())


def _search_built(
    searcher: Any,
    queries: np.ndarray,
    references: np.ndarray,
    k: int,
    exclude: np.ndarray,
    wanted: int,
    settings: ScannSettings,
) -> Neighbours:
    """Asks a built index, drops what is excluded, and repairs rows that came short."""
    indices, similarities = searcher.search_batched_parallel(
        queries,
        final_num_neighbors=wanted,
        pre_reorder_num_neighbors=settings.reorder or None,
        leaves_to_search=settings.num_leaves_to_search or None,
    )
    # Where the visited leaves hold too few points ScaNN fills up with index 0 and NaN,
    # and where all queries come short it returns fewer columns.
    missing = [(0, 0), (0, max(0, wanted - indices.shape[1]))]
    indices = np.pad(indices.astype(np.int32), missing)
    similarities = np.pad(similarities, missing, constant_values=np.nan)
    lost = np.isnan(similarities) | (indices == exclude[:, None])
    similarities = np.where(lost, -np.inf, np.clip(similarities, -1, 1))
    order = np.lexsort((indices, -similarities))[:, :k]
    indices = np.take_along_axis(indices, order, 1)
    similarities = np.take_along_axis(similarities, order, 1).astype(np.float32)
    short = np.flatnonzero(np.isinf(similarities[:, -1]))
    if short.size:
        indices[short], similarities[short] = exact_neighbours(
            queries[short], references, k, exclude[short]
        )
    return Neighbours(indices, similarities)


def _build_scann(
    scann: Any, references: np.ndarray, wanted: int, settings: ScannSettings
) -> Any:
    builder = scann.scann_ops_pybind.builder(references, wanted, "dot_product")
    if settings.kind == "brute_force":
        return builder.score_brute_force().build()
    if settings.kind == "tree_ah":
        # Without `spherical` unit vectors need ten times the leaves for one recall.
        builder = builder.tree(
            num_leaves=settings.num_leaves,
            num_leaves_to_search=settings.num_leaves_to_search,
            training_sample_size=min(len(references), 250_000),
            spherical=True,
        )
    # Two dimensions a block and threshold 0.2 are what ScaNN's guidance advises.
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    return builder.reorder(settings.reorder).build()


def _import_scann() -> Any | None:
    if sys.platform != "linux":
        return None
    try:
        return importlib.import_module("scann")
    except ImportError:
        return None


def _split_sample(num_queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws two samples of query rows, disjoint where there are two queries."""
    rows = np.random.default_rng(seed).permutation(num_queries)
    size = min(RECALL_QUERIES, max(1, num_queries // 2))
    return np.sort(rows[:size]), np.sort(rows[-size:])


def _doublings(first: int, last: int) -> list[int]:
    """Returns first, 2 first, 4 first, ... and last."""
    steps = max(0, math.ceil(math.log2(last / first)))
    return [first * 2**step for step in range(steps)] + [last]
