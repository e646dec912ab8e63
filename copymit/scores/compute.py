"""The score stage: embeddings and neighbours in, the numbers of `scores.json` out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.bootstrap import (
    Statistic,
    bootstrap_ci,
    estimate,
    mean,
    percentile,
    share_below,
)
from copymit.scores.complexity import Complexity, complexity_correlations
from copymit.scores.provenance import UNKNOWN_ROW, Provenance
from copymit.scores.similarity import (
    Scores,
    duplicated_match_summary,
    nearest_l2_ratio,
    prompted_image_summary,
    similarity_summary,
)
from copymit.scores.tiled import EXTRACTED_BELOW
from copymit.search.exact import SearchResult

# Neighbours after the nearest that Carlini et al.'s ratio compares it with.
_NEXT_NEIGHBOURS = 10


class View(NamedTuple):
    """What one embedder saw.

    Attributes:
      embeddings: of `generations`, `references` and, where known, `heldout`.
      neighbours: nearest references of `generations`, of `background` (the references
        themselves, each without itself) and of `heldout`.
    """

    embedder: str
    protocol: str
    embeddings: Mapping[str, Embeddings]
    neighbours: Mapping[str, SearchResult]


def compute_scores(
    views: Sequence[View],
    provenance: Provenance,
    matched: Complexity,
    seed: int,
) -> Scores:
    """Computes the scores of copying; the first view gives the unprefixed keys.

    Args:
      matched: complexity of the nearest reference of each generation by the first view.
    """
    first = views[0]
    scores: Scores = {"embedder": first.embedder, "protocol": first.protocol}
    scores["protocols"] = {view.embedder: view.protocol for view in views}
    scores |= {f"num_{name}": len(e.ids) for name, e in first.embeddings.items()}
    if provenance.clusters is not None:
        scores["num_clusters"] = len(np.unique(provenance.clusters))
    for view in views:
        prefix = "" if view is first else f"{view.embedder}_"
        scores |= _similarities(view, provenance, prefix, seed)
        scores |= _nearest_ratios(view, provenance, prefix, seed)
    top1 = first.neighbours["generations"].neighbours.similarities[:, 0]
    return scores | complexity_correlations(top1, matched, provenance.clusters, seed)


def score_parts(
    values: Mapping[str, Float[np.ndarray, " Q"]],
    clusters: Int[np.ndarray, " Q"] | None,
    seed: int,
) -> Scores:
    """Scores copies of parts of images, each number with its interval.

    Args:
      values: `template_similarity` of each generation, the largest of its tiles to the
        tile at the same place of any reference; `background_template_similarity` of
        references to others; `tile_l2`, see scores/tiled.py.
    """
    scores: Scores = {}
    for name, array in values.items():
        statistics: dict[str, Statistic] = {"mean": mean}
        if name == "tile_l2":
            extracted = share_below(EXTRACTED_BELOW)
            statistics |= {"p5": percentile(5), f"below_{EXTRACTED_BELOW}": extracted}
        else:
            statistics |= {"p95": percentile(95)}
        own = None if name.startswith("background") else clusters
        intervals = bootstrap_ci(array, statistics, own, seed=seed)
        for statistic, function in statistics.items():
            scores[f"{name}_{statistic}"] = estimate(array, function)
            scores[f"{name}_{statistic}_ci95"] = intervals[statistic]
    return scores


def _similarities(view: View, provenance: Provenance, prefix: str, seed: int) -> Scores:
    found = view.neighbours["generations"]
    matches = found.neighbours.indices[:, 0]
    top1 = found.neighbours.similarities[:, 0]
    prompted, duplicated, clusters = provenance
    scores = similarity_summary(top1, clusters, seed, prefix)
    for name in ("background", "heldout"):
        if name in view.neighbours:
            others = view.neighbours[name].neighbours.similarities[:, 0]
            scores |= similarity_summary(others, None, seed, f"{prefix}{name}_")
    parts: Scores = {}
    if duplicated is not None and duplicated.any():
        parts |= duplicated_match_summary(top1, matches, duplicated, clusters, seed)
    if prompted is not None and (known := prompted != UNKNOWN_ROW).any():
        images = prompted[known]
        generations = view.embeddings["generations"].unit[known]
        references = unit_rows(view.embeddings["references"].rows(images))
        to_prompted = np.einsum("qd,qd->q", generations, references)
        split = duplicated if duplicated is not None and duplicated.any() else None
        parts |= prompted_image_summary(
            top1[known], matches[known], images, to_prompted, split, seed
        )
    scores |= {prefix + key: value for key, value in parts.items()}
    scores |= {
        f"{prefix}search_backend": found.backend,
        f"{prefix}search_settings": found.settings,
        f"{prefix}search_recall": found.recall,
    }
    return scores


def _nearest_ratios(
    view: View, provenance: Provenance, prefix: str, seed: int
) -> Scores:
    """Scores Carlini's ratio, whose small values mean a copy, for every set."""
    scores: Scores = {}
    for name, found in view.neighbours.items():
        similarities = found.neighbours.similarities[:, : _NEXT_NEIGHBOURS + 1]
        if similarities.shape[1] <= _NEXT_NEIGHBOURS:
            continue
        distances = np.sqrt(np.maximum(2 - 2 * similarities.astype(np.float64), 0))
        ratios = nearest_l2_ratio(distances)
        clusters = provenance.clusters if name == "generations" else None
        statistics = {"mean": mean, "p5": percentile(5)}
        intervals = bootstrap_ci(ratios, statistics, clusters, seed=seed)
        part = "" if name == "generations" else f"{name}_"
        for statistic, function in statistics.items():
            key = f"{prefix}{part}nearest_l2_ratio_{statistic}"
            scores[key] = estimate(ratios, function)
            scores[f"{key}_ci95"] = intervals[statistic]
    return scores


def neighbour_table(
    found: SearchResult, query_ids: list[str], reference_ids: list[str], query: str
) -> pd.DataFrame:
    """Lays neighbours out as rows: query id, rank from 0, reference id, similarity.

    Args:
      query: name of the first column, `generation` for generations.
    """
    Q, k = found.neighbours.indices.shape
    return pd.DataFrame(
        {
            query: np.repeat(np.array(query_ids, object), k),
            "rank": np.tile(np.arange(k, dtype=np.int32), Q),
            "reference": np.array(reference_ids, object)[
                found.neighbours.indices.ravel()
            ],
            "similarity": found.neighbours.similarities.ravel(),
        }
    )
