"""The score stage: embeddings and neighbours in, the numbers of `scores.json` out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt8

from copymit.embedding.embed import Embeddings
from copymit.scores.bootstrap import bootstrap_ci, estimate, mean, percentile
from copymit.scores.complexity import complexity_correlations
from copymit.scores.frechet import (
    density_coverage,
    frechet_distance,
    gaussian_moments,
    kernel_distance,
    precision_recall,
    sample_size_warning,
)
from copymit.scores.similarity import (
    Scores,
    duplicated_match_summary,
    nearest_l2_ratio,
    prompted_image_summary,
    similarity_summary,
)
from copymit.search.exact import SearchResult

# Neighbours after the nearest that Carlini et al.'s ratio compares it with.
_NEXT_NEIGHBOURS = 10
# Nearest-neighbour balls of precision, recall, density and coverage need more images.
_LEAST_FOR_MANIFOLDS = 6


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


class Provenance(NamedTuple):
    """What is known about where generations and references come from.

    Attributes:
      prompted: row of the reference whose caption prompted each generation, or None.
      duplicated: whether each reference was duplicated in training, or None.
    """

    prompted: Int[np.ndarray, " Q"] | None
    duplicated: Bool[np.ndarray, " R"] | None


def compute_scores(
    views: list[View],
    provenance: Provenance,
    matched_images: list[UInt8[np.ndarray, "H W 3"]],
    seed: int,
) -> Scores:
    """Computes every score; the first view gives the headline, unprefixed keys.

    Args:
      matched_images: nearest reference of each generation by the first view.
    """
    first = views[0]
    scores: Scores = {"embedder": first.embedder, "protocol": first.protocol}
    scores |= {f"num_{name}": len(e.features) for name, e in first.embeddings.items()}
    for view in views:
        prefix = "" if view is first else f"{view.embedder}_"
        scores |= _similarities(view, provenance, prefix, seed)
        scores |= _nearest_ratios(view, provenance, prefix, seed)
    scores |= _quality(first)
    top1 = first.neighbours["generations"].neighbours.similarities[:, 0]
    scores |= complexity_correlations(top1, matched_images)
    return scores


def _similarities(view: View, provenance: Provenance, prefix: str, seed: int) -> Scores:
    found = view.neighbours["generations"]
    matches = found.neighbours.indices[:, 0]
    top1 = found.neighbours.similarities[:, 0]
    prompted, duplicated = provenance
    scores = similarity_summary(top1, prompted, seed, prefix)
    for name in ("background", "heldout"):
        if name in view.neighbours:
            others = view.neighbours[name].neighbours.similarities[:, 0]
            scores |= similarity_summary(others, None, seed, f"{prefix}{name}_")
    parts: Scores = {}
    if duplicated is not None and duplicated.any():
        parts |= duplicated_match_summary(top1, matches, duplicated, prompted, seed)
    if prompted is not None:
        generations = view.embeddings["generations"].unit
        references = view.embeddings["references"].unit
        to_prompted = np.einsum("qd,qd->q", generations, references[prompted])
        split = duplicated if duplicated is not None and duplicated.any() else None
        parts |= prompted_image_summary(
            top1, matches, prompted, to_prompted, split, seed
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
        clusters = provenance.prompted if name == "generations" else None
        statistics = {"mean": mean, "p5": percentile(5)}
        intervals = bootstrap_ci(ratios, statistics, clusters, seed=seed)
        part = "" if name == "generations" else f"{name}_"
        for statistic, function in statistics.items():
            key = f"{prefix}{part}nearest_l2_ratio_{statistic}"
            scores[key] = estimate(ratios, function)
            scores[f"{key}_ci95"] = intervals[statistic]
    return scores


def _quality(view: View) -> Scores:
    """Scores how well generations match the references, and the held-out images.

    The distance to held-out images is the fairer one: to copy does not lower it.
    """
    generations = view.embeddings["generations"].features
    references = view.embeddings["references"].features
    scores: Scores = {"warnings": []}
    if (
        len(generations) < _LEAST_FOR_MANIFOLDS
        or len(references) < _LEAST_FOR_MANIFOLDS
    ):
        scores["warnings"].append(
            f"{len(generations)} generations and {len(references)} references are too "
            "few to measure quality"
        )
        return scores
    warning = sample_size_warning(
        len(references), len(generations), references.shape[1]
    )
    if warning:
        scores["warnings"].append(warning)
    moments = gaussian_moments(generations)
    scores[f"fd_{view.embedder}"] = frechet_distance(
        *gaussian_moments(references), *moments
    )
    if "heldout" in view.embeddings and len(view.embeddings["heldout"].features) > 1:
        heldout = gaussian_moments(view.embeddings["heldout"].features)
        scores[f"fd_{view.embedder}_to_heldout"] = frechet_distance(*heldout, *moments)
    scores[f"kd_{view.embedder}"] = kernel_distance(references, generations)
    scores["precision"], scores["recall"] = precision_recall(references, generations)
    scores["density"], scores["coverage"] = density_coverage(references, generations)
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
