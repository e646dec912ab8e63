"""Every score as a row for a reader: key, value, interval and meaning, in groups.

Flat scores enter, named groups of rows leave.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from copymit.report.verdict import format_interval, format_value, read_estimate

_GROUPS = {
    "generations": "Generations: similarity to their nearest training image",
    "prompted": "Prompted images and duplication",
    "background": "Training images: similarity to the nearest other training image",
    "heldout": "Images never trained on: similarity to the nearest training image",
    "quality": "Quality",
    "complexity": "Complexity of the nearest training image",
    "other": "Counts and settings of the measurement",
}
_MAX_TEXT = 1000  # characters of a value that is no number
_BY_EMBEDDER = ("generations", "prompted", "background", "heldout")
_SETS = {"background_": "background", "heldout_": "heldout"}

# (group, pattern of the key without prefixes, meaning); the first that fits counts.
_MEANINGS = [
    ("generations", r"dataset_similarity", "95th percentile of similarity"),
    ("generations", r"similarity_mean", "mean"),
    ("generations", r"similarity_std", "standard deviation"),
    ("generations", r"similarity_p(\d+)", r"\1th percentile"),
    ("generations", r"similarity_above_([\d.]+)", r"share above \1"),
    ("generations", r"similarity_count", "number of images"),
    (
        "generations",
        r"nearest_l2_ratio_(mean|p5)",
        "distance to the nearest training image over the mean distance to the next 10; "
        r"small = copied (\1)",
    ),
    (
        "generations",
        r"template_similarity_p(\d+)",
        r"similarity of the most alike tile of two images, \1th percentile",
    ),
    (
        "generations",
        r"template_similarity_above_([\d.]+)",
        r"share whose most alike tile is above \1: a copied part of an image counts",
    ),
    (
        "generations",
        r"template_similarity_(\w+)",
        r"similarity of the most alike of the aligned tiles of two images (\1)",
    ),
    (
        "generations",
        r"tile_l2_below_([\d.]+)",
        r"share below \1, which Carlini et al. count as extracted",
    ),
    (
        "generations",
        r"tile_l2_(\w+)",
        "Carlini et al.'s distance, the largest over tiles of an image, to the nearest "
        r"training image; small = copied (\1)",
    ),
    (
        "prompted",
        r"prompted_image_hits",
        "share whose nearest training image is the one whose caption prompted it",
    ),
    (
        "prompted",
        r"prompted_image_hits_duplicated",
        "the same among generations prompted by duplicated images",
    ),
    (
        "prompted",
        r"prompted_image_hits_unduplicated",
        "the same among generations prompted by other images",
    ),
    (
        "prompted",
        r"prompted_(duplicated|unduplicated)_similarity_mean",
        r"mean similarity to the nearest training image, prompted by \1 images",
    ),
    (
        "prompted",
        r"prompted_(duplicated|unduplicated)_count",
        r"generations prompted by \1 images",
    ),
    (
        "prompted",
        r"similarity_to_prompted_(duplicated|unduplicated)",
        r"mean similarity to the prompted image, \1 images",
    ),
    ("prompted", r"similarity_to_prompted", "mean similarity to the prompted image"),
    (
        "prompted",
        r"similarity_to_(duplicated|unduplicated)_count",
        r"generations whose nearest training image is \1",
    ),
    (
        "prompted",
        r"similarity_to_(duplicated|unduplicated)",
        r"mean similarity where the nearest training image is \1",
    ),
    (
        "quality",
        r"fid",
        "Fréchet Inception distance to the training images; lower = more alike",
    ),
    (
        "quality",
        r"fd_(.+)_to_heldout",
        r"the same to images never trained on, which copies do not lower",
    ),
    (
        "quality",
        r"fd_(.+)",
        r"Fréchet distance to the training images in features of \1; lower = more alike",
    ),
    (
        "quality",
        r"(?:kid|kd_.+|kernel_distance.*)",
        "kernel distance (unbiased MMD²) to the training images; lower = more alike",
    ),
    ("quality", r"precision", "share of generations that look like training images"),
    ("quality", r"recall", "share of training images that look like generations"),
    ("quality", r"density", "as precision, weighted by how crowded the place is"),
    ("quality", r"coverage", "share of training images with a generation close by"),
    (
        "quality",
        r"cmmd",
        "kernel distance (MMD, Gaussian kernel) in features of CLIP; lower = more alike",
    ),
    (
        "quality",
        r"clip_score",
        "how well generations fit their prompts: mean cosine of CLIP features",
    ),
    ("quality", r"background_clip_score", "the same for training images and captions"),
    (
        "complexity",
        r"complexity_(\w+)_pearson",
        r"Pearson correlation of similarity with \1; negative = simple images are copied",
    ),
    (
        "complexity",
        r"complexity_(\w+)_pvalue",
        r"p-value of that correlation with \1",
    ),
    ("complexity", r"complexity_.+", ""),
    ("other", r"embedder", "network that measures similarity"),
    ("other", r"protocol", "how images are prepared for it"),
    ("other", r"num_(\w+)", r"number of \1"),
    ("other", r"search_backend", "how nearest images are found"),
    ("other", r"search_settings", "of that search"),
    (
        "other",
        r"(?:\w+_)?quality_protocol",
        "how images are prepared for the network that measures quality",
    ),
    (
        "other",
        r"(?:\w+_)?quality_pairs_of",
        "images, generated and real, in measures that compare all pairs",
    ),
    ("other", r"protocols", "how images are prepared for each network"),
    ("other", r"num_skipped_(\w+)", r"\1 that could not be read and were left out"),
    ("other", r"skipped_(\w+)", r"which \1, and why"),
    ("other", r"\w*clip_score_count", "images in that CLIP score"),
    ("other", r"(\w+)_protocol", r"how images are prepared for \1"),
    ("other", r"image_size_px", "side of all images in pixels"),
    ("other", r"train_loss", "loss at the end of training"),
    (
        "other",
        r"search_recall_\w+",
        "share of the true neighbours that it finds, further",
    ),
    ("other", r"search_recall", "share of true nearest images that the search finds"),
]


class Row(NamedTuple):
    """One score, written out."""

    key: str
    value: str
    interval: str
    meaning: str


class Group(NamedTuple):
    """Rows under a heading."""

    heading: str
    rows: list[Row]


def tabulate_scores(scores: Mapping[str, Any]) -> list[Group]:
    """Lists every score that was measured, by group, second measures after the first.

    None, `warnings` and the `_ci95` of a score that is listed make no row of their own.
    """
    first = str(scores.get("embedder", ""))
    order = list(_GROUPS)
    groups: dict[tuple[bool, int, str], list[tuple[int, Row]]] = {}
    for key in scores:
        row = _row(scores, key)
        if row is None:
            continue
        second, plain = _split_embedder(scores, key)
        group, rank, meaning = _describe(plain)
        embedder = second or (first if group in _BY_EMBEDDER else "")
        heading = _GROUPS[group] + (f" (by {embedder})" if embedder else "")
        place = (bool(second), order.index(group), heading)
        groups.setdefault(place, []).append((rank, row._replace(meaning=meaning)))
    return [
        Group(place[-1], [row for _, row in sorted(rows, key=lambda r: r[0])])
        for place, rows in sorted(groups.items())
    ]


def _row(scores: Mapping[str, Any], key: str) -> Row | None:
    value = scores[key]
    if value is None or key == "warnings":
        return None
    if key.endswith("_ci95") and read_estimate(scores, key.removesuffix("_ci95")):
        return None
    estimate = read_estimate(scores, key)
    if estimate:
        text, interval = (
            format_value(key, estimate.value),
            format_interval(key, estimate),
        )
        return Row(key, text, interval, "")
    written = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(written) > _MAX_TEXT:
        written = written[: _MAX_TEXT - 1] + "…"
    return Row(key, written, "", "")


def _split_embedder(scores: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Splits the prefix of a second embedder off, told by its own mean similarity."""
    known = [k for k in scores if k.endswith("_similarity_mean")]
    for mean in known:
        embedder = mean.removesuffix("_similarity_mean")
        is_set = re.search(r"(^|_)(background|heldout|prompted_\w+)$", embedder)
        if not is_set and key.startswith(f"{embedder}_"):
            return embedder, key.removeprefix(f"{embedder}_")
    return "", key


def _describe(key: str) -> tuple[str, int, str]:
    """Is group, rank within it, and meaning of a key without embedder prefix."""
    for prefix, group in _SETS.items():
        inner = key.removeprefix(prefix)
        if inner != key and _describe(inner)[0] == "generations":
            return (group, *_describe(inner)[1:])
    for rank, (group, pattern, meaning) in enumerate(_MEANINGS):
        match = re.fullmatch(pattern, key)
        if match:
            return group, rank, match.expand(meaning)
    return "other", len(_MEANINGS), ""
