"""How good and how varied generations are: their features against the training images'.

Embeddings by one network enter; distances of distributions, and shares of images that
lie among those of the other set, leave. To copy the training images lowers the distance
to them, but not that to held-out images.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.bootstrap import cluster_numbers
from copymit.scores.cmmd import SCALE, clip_maximum_mean_discrepancy
from copymit.scores.frechet import (
    Gaussian,
    kernel_distance,
    sample_size_warning,
)
from copymit.scores.jackknife import (
    frechet_replicates,
    group_clusters,
    jackknife_ci,
    kernel_replicates,
    share_jackknife_ci,
)
from copymit.scores.manifold import manifold_scores
from copymit.scores.similarity import Scores

# Nearest-neighbour balls of precision, recall, density and coverage need more images.
_LEAST_FOR_MANIFOLDS = 6
# Measures that compare all pairs take at most this many images of a set, drawn once.
MAX_PAIRED_ROWS = 10_000
# Preprocessings under which a Frechet distance of Inception features is called FID.
_FID_PROTOCOLS = (
    "inception_clean",
    "inception_legacy_pytorch",
    "inception_legacy_tensorflow",
)
_OTHER_WEIGHTS = "not the published file"
_CMMD_EMBEDDER = "clip_vit_l14_336"


def score_quality(
    embedder: str,
    embeddings: Mapping[str, Embeddings],
    seed: int,
    prefix: str = "",
    clusters: Int[np.ndarray, " Q"] | None = None,
) -> Scores:
    """Compares the generations with the references, and with images held out.

    Keys: `fid` and `kid` for the published Inception under a standard preprocessing,
    else `fd_<embedder>` and `kd_<embedder>`; `..._to_heldout`; `cmmd` for CLIP ViT-L/14
    at 336 px; `precision`, `recall`, `density`, `coverage` under `prefix`. Each with
    `_ci95` over clusters of generations, against fixed references; None where these are
    too few.

    Args:
      embeddings: of `generations`, `references` and, where known, `heldout`.
      seed: draws the images of larger sets for measures that compare all pairs.
      clusters: which generations are not independent; None makes each its own.
    """
    generations, references = embeddings["generations"], embeddings["references"]
    scores: Scores = {"warnings": []}
    Q, R = len(generations.ids), len(references.ids)
    if min(Q, R) < _LEAST_FOR_MANIFOLDS:
        scores["warnings"].append(
            f"{Q} generations and {R} references are too few to measure quality"
        )
        return scores
    warning = sample_size_warning(R, Q, references.shards[0].shape[1])
    if warning:
        scores["warnings"].append(warning)
        frechet, _ = distance_names(embedder, references.protocol)
        scores[f"frechet_bias_of_{frechet}"] = warning
    sample = _draw(references, generations, clusters, seed)
    scores |= _frechet_distances(embedder, embeddings, sample)
    scores |= _kernel_distances(embedder, references.protocol, sample)
    scores |= {f"{prefix}{k}": v for k, v in _manifolds(sample).items()}
    scores[f"{prefix}quality_pairs_of"] = [len(sample.rows), len(sample.references)]
    return scores


class _Sample(NamedTuple):
    """What measures of pairs and intervals take of each set.

    Attributes:
      groups: which rows to leave out together; None where what is left is too little.
    """

    references: Float[np.ndarray, "R D"]
    rows: Float[np.ndarray, "Q D"]
    groups: Bool[np.ndarray, "G Q"] | None
    num_clusters: int


def _draw(
    references: Embeddings,
    generations: Embeddings,
    clusters: Int[np.ndarray, " Q"] | None,
    seed: int,
) -> _Sample:
    chosen = _some_rows(generations, seed)
    own = cluster_numbers(clusters, len(generations.ids))[chosen]
    groups = group_clusters(own, len(chosen), seed)
    enough = (~groups).sum(1).min() >= _LEAST_FOR_MANIFOLDS
    return _Sample(
        _rows_of(references, _some_rows(references, seed)),
        _rows_of(generations, chosen),
        groups if enough else None,
        len(np.unique(own)),
    )


def _frechet_distances(
    embedder: str, embeddings: Mapping[str, Embeddings], sample: _Sample
) -> Scores:
    scores: Scores = {}
    generations, references = embeddings["generations"], embeddings["references"]
    key, _ = distance_names(embedder, references.protocol)
    gaussian = _fit_gaussian(generations)
    sets = {key: references, f"{key}_to_heldout": embeddings.get("heldout")}
    for key, others in sets.items():
        if others is None or len(others.ids) < 2:
            continue
        there = _fit_gaussian(others)
        scores[key], scores[f"{key}_ci95"] = there.distance(gaussian), None
        if sample.groups is not None:
            replicates = frechet_replicates(there, sample.rows, sample.groups)
            # A variance falls with the number of images, and this is of some of them.
            replicates *= (len(sample.rows) / len(generations.ids)) ** 0.5
            scores[f"{key}_ci95"] = jackknife_ci(scores[key], replicates, (0, np.inf))
    return scores


def _kernel_distances(embedder: str, protocol: str, sample: _Sample) -> Scores:
    scores: Scores = {}
    _, key = distance_names(embedder, protocol)
    rows = (sample.references, sample.rows)
    scores[key] = kernel_distance(*rows)
    scores[f"{key}_ci95"] = None
    if sample.groups is not None:
        replicates = kernel_replicates("cubic", *rows, sample.groups)
        scores[f"{key}_ci95"] = jackknife_ci(scores[key], replicates)
    if embedder == _CMMD_EMBEDDER:
        units = (unit_rows(rows[0]), unit_rows(rows[1]))
        scores["cmmd"] = clip_maximum_mean_discrepancy(*units)
        scores["cmmd_ci95"] = None
        if sample.groups is not None:
            replicates = SCALE * kernel_replicates("gaussian", *units, sample.groups)
            scores["cmmd_ci95"] = jackknife_ci(scores["cmmd"], replicates, (0, np.inf))
    return scores


def _manifolds(sample: _Sample) -> Scores:
    scores: Scores = {}
    found = manifold_scores(sample.references, sample.rows, sample.groups)
    for name, (value, *replicates) in found.items():
        scores[name], scores[f"{name}_ci95"] = float(value), None
        if replicates:
            without = np.array(replicates)
            scores[f"{name}_ci95"] = (
                jackknife_ci(value, without, (0, np.inf))
                if name == "density"
                else share_jackknife_ci(value, without, sample.num_clusters)
            )
    return scores


def distance_names(embedder: str, protocol: str) -> tuple[str, str]:
    """Names the Frechet and the kernel distance: only one of each is FID and KID."""
    if embedder in _FID_PROTOCOLS and _OTHER_WEIGHTS not in protocol:
        return "fid", "kid"
    return f"fd_{embedder}", f"kd_{embedder}"


def moments_of(
    embeddings: Embeddings,
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Is `gaussian_moments` of all features, with one shard in memory at a time."""
    count = len(embeddings.ids)
    total = sum(shard.sum(0, dtype=np.float64) for shard in embeddings.shards)
    mean = np.asarray(total / count)
    squares = np.zeros((len(mean), len(mean)))
    for shard in embeddings.shards:
        centred = shard - mean
        squares += centred.T @ centred
    return mean, squares / (count - 1)


def _fit_gaussian(embeddings: Embeddings) -> Gaussian:
    if len(embeddings.ids) <= embeddings.shards[0].shape[1]:
        return Gaussian.of_rows(embeddings.features)
    mean, covariance = moments_of(embeddings)
    return Gaussian(mean, covariance=covariance)


def _some_rows(embeddings: Embeddings, seed: int) -> Int[np.ndarray, " N"]:
    count = len(embeddings.ids)
    if count <= MAX_PAIRED_ROWS:
        return np.arange(count)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, MAX_PAIRED_ROWS, replace=False))


def _rows_of(
    embeddings: Embeddings, chosen: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N D"]:
    if len(chosen) == len(embeddings.ids):
        return embeddings.features
    return embeddings.rows(chosen)
