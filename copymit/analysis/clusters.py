"""Clusters of examples: groups of images or of captions in, tables and counts out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from copymit.analysis.near import mean_similarity
from copymit.embedding.store import Embeddings

Kind = Literal["image", "caption"]


class Side(NamedTuple):
    """Images or captions of the examples, each different one once.

    Attributes:
      number: of each example's image, or caption, among the different ones.
      embeddings: of the different ones.
      groups: of the different ones, what belongs together.
    """

    number: Int[np.ndarray, " N"]
    embeddings: Embeddings
    groups: Int[np.ndarray, " U"]


class Cluster(NamedTuple):
    """Examples with nearly the same image, or nearly the same caption.

    Attributes:
      number: 1 is the largest of its kind.
      rows: of the table of examples, in its order.
      kept: the row that stands for all: most pixels, then first.
      num_images, num_captions: different ones, in pixels and in normalised words.
      image_similarity, caption_similarity: mean cosines over all pairs.
    """

    kind: Kind
    number: int
    rows: Int[np.ndarray, " M"]
    kept: int
    num_images: int
    num_captions: int
    image_similarity: float
    caption_similarity: float


def make_clusters(
    kind: Kind, table: pd.DataFrame, images: Side, captions: Side
) -> list[Cluster]:
    """Lists the clusters of two or more examples, the largest first."""
    side = images if kind == "image" else captions
    groups = list_groups(side.groups[side.number])
    if kind == "caption":
        # Images without a caption have none in common.
        groups = [rows for rows in groups if table["caption"].iloc[rows[0]]]
    pixels = table["width"].to_numpy(np.int64) * table["height"].to_numpy(np.int64)
    return [
        Cluster(
            kind,
            number,
            rows,
            int(rows[np.argmax(pixels[rows])]),
            len(np.unique(images.number[rows])),
            len(np.unique(captions.number[rows])),
            mean_similarity(images.embeddings, images.number[rows]),
            mean_similarity(captions.embeddings, captions.number[rows]),
        )
        for number, rows in enumerate(groups, 1)
    ]


def list_groups(labels: Int[np.ndarray, " N"]) -> list[Int[np.ndarray, " M"]]:
    """Lists the places of each label that occurs twice or more, the most frequent first."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [rows for rows in np.split(order, starts) if len(rows) > 1]
    return sorted(groups, key=lambda rows: (-len(rows), rows[0]))


def count_groups(groups: Sequence[Int[np.ndarray, " M"]]) -> dict[str, int]:
    """Counts groups, their examples, and how many more than one of each there are."""
    sizes = [len(rows) for rows in groups]
    return {
        "groups": len(sizes),
        "examples": sum(sizes),
        "surplus": sum(sizes) - len(sizes),
        "largest": max(sizes, default=0),
    }


def tabulate_clusters(
    clusters: Sequence[Cluster], table: pd.DataFrame, sides: Mapping[Kind, Side]
) -> pd.DataFrame:
    """Lays clusters out, a row for each example in each."""
    columns = ["example_id", "caption", "width", "height"]
    columns += ["file_digest", "pixel_digest"]
    parts = []
    for cluster in clusters:
        part = table.iloc[cluster.rows][columns].copy()
        part.insert(0, "kind", cluster.kind)
        part.insert(1, "cluster", cluster.number)
        part.insert(2, "size", len(cluster.rows))
        part["kept"] = cluster.rows == cluster.kept
        for name, side in sides.items():
            part[f"{name}_similarity_to_kept"] = _similarity_to(side, cluster)
        part["image_similarity"] = cluster.image_similarity
        part["caption_similarity"] = cluster.caption_similarity
        parts.append(part)
    if parts:
        return pd.concat(parts, ignore_index=True)
    names = ["kind", "cluster", "size", *columns, "kept"]
    names += [f"{name}_similarity_to_kept" for name in sides]
    return pd.DataFrame(columns=[*names, "image_similarity", "caption_similarity"])


def make_manifest(table: pd.DataFrame, clusters: Sequence[Cluster]) -> pd.DataFrame:
    """Lists every example with factor 1, or 0 if it is to be left out.

    Left out are all but one of each cluster of images, and what cannot be read.

    Args:
      table: all examples; the rows of clusters count those that can be read.
    """
    factors = (table["fault"] == "").to_numpy(np.int64)
    readable = np.flatnonzero(factors)
    for cluster in clusters:
        if cluster.kind == "image":
            factors[readable[cluster.rows]] = 0
            factors[readable[cluster.kept]] = 1
    return pd.DataFrame({"example_id": table["example_id"], "factor": factors})


def count_by_captions(
    clusters: Sequence[Cluster], caption_threshold: float
) -> dict[str, int]:
    """Counts clusters of images by what their captions are."""
    counts: dict[str, Any] = {"same": 0, "similar": 0, "different": 0}
    for cluster in clusters:
        if cluster.kind == "image":
            counts[caption_relation(cluster, caption_threshold)] += 1
    return counts


def caption_relation(cluster: Cluster, caption_threshold: float) -> str:
    """Says whether the captions of a cluster are the same, similar or different."""
    if cluster.num_captions == 1:
        return "same"
    similar = cluster.caption_similarity >= caption_threshold
    return "similar" if similar else "different"


def _similarity_to(side: Side, cluster: Cluster) -> np.ndarray:
    """Computes the cosine of each member to the one that is kept."""
    numbers, inverse = np.unique(side.number[cluster.rows], return_inverse=True)
    kept = side.embeddings.rows(side.number[[cluster.kept]])[0]
    rows = side.embeddings.rows(numbers)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(kept)
    cosines = (rows @ kept) / np.maximum(lengths, 1e-12)
    return np.clip(cosines, -1, 1)[inverse].astype(np.float32)
