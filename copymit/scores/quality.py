"""How good and how varied generations are: their features against the training images'.

Embeddings by one network enter; distances of distributions, and shares of images that
lie among those of the other set, leave. To copy the training images lowers the distance
to them, but not that to held-out images.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.cmmd import clip_maximum_mean_discrepancy
from copymit.scores.frechet import (
    covariance_factor,
    density_coverage,
    factored_distance,
    kernel_distance,
    precision_recall,
    sample_size_warning,
)
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
) -> Scores:
    """Compares the generations with the references, and with images held out.

    Keys: `fid` and `kid` for the published Inception under a standard preprocessing,
    else `fd_<embedder>` and `kd_<embedder>`; `..._to_heldout`; `cmmd` for CLIP ViT-L/14
    at 336 px; `precision`, `recall`, `density`, `coverage` under `prefix`.

    Args:
      embeddings: of `generations`, `references` and, where known, `heldout`.
      seed: draws the images of larger sets for measures that compare all pairs.
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
    frechet, kernel = distance_names(embedder, references.protocol)
    generated = gaussian_of(generations)
    scores[frechet] = factored_distance(*gaussian_of(references), *generated)
    heldout = embeddings.get("heldout")
    if heldout is not None and len(heldout.ids) > 1:
        scores[f"{frechet}_to_heldout"] = factored_distance(
            *gaussian_of(heldout), *generated
        )
    rows = (_some_rows(references, seed), _some_rows(generations, seed))
    scores[kernel] = kernel_distance(*rows)
    if embedder == _CMMD_EMBEDDER:
        scores["cmmd"] = clip_maximum_mean_discrepancy(*map(unit_rows, rows))
    names = ("precision", "recall", "density", "coverage")
    values = (*precision_recall(*rows), *density_coverage(*rows))
    scores |= {f"{prefix}{n}": v for n, v in zip(names, values, strict=True)}
    scores[f"{prefix}quality_pairs_of"] = [len(rows[1]), len(rows[0])]
    return scores


def distance_names(embedder: str, protocol: str) -> tuple[str, str]:
    """Names the Frechet and the kernel distance: only one of each is FID and KID."""
    if embedder in _FID_PROTOCOLS and _OTHER_WEIGHTS not in protocol:
        return "fid", "kid"
    return f"fd_{embedder}", f"kd_{embedder}"


def gaussian_of(
    embeddings: Embeddings,
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D R"]]:
    """Is the mean of all features, and F with `F F^T` their unbiased covariance.

    One shard is in memory at a time. Fewer images than features are a factor of their
    covariance themselves: it is neither made nor decomposed.
    """
    count = len(embeddings.ids)
    total = sum(shard.sum(0, dtype=np.float64) for shard in embeddings.shards)
    mean = np.asarray(total / count)
    centred = (shard - mean for shard in embeddings.shards)
    if count < len(mean):
        return mean, np.concatenate(list(centred)).T / np.sqrt(count - 1)
    covariance = sum(rows.T @ rows for rows in centred) / (count - 1)
    return mean, covariance_factor(covariance, len(mean), "the covariance")


def _some_rows(embeddings: Embeddings, seed: int) -> Float[np.ndarray, "N D"]:
    count = len(embeddings.ids)
    if count <= MAX_PAIRED_ROWS:
        return embeddings.features
    rng = np.random.default_rng(seed)
    return embeddings.rows(np.sort(rng.choice(count, MAX_PAIRED_ROWS, replace=False)))
