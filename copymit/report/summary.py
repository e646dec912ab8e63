"""The numbers that matter most, as lines for a terminal and for a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from copymit.report.verdict import (
    format_interval,
    format_value,
    quality_key,
    read_estimate,
    score_label,
)

_HEAD = (
    "",
    "value",
    "95 % interval",
    "training images to each other",
    "held-out images",
)
_SETS = ("background", "heldout")


def summary_rows(scores: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Picks up to five numbers, with what they are for images that no model made.

    Returns:
      A head and a row for each number: label, value, interval and the same number of
      training images and of held-out ones, "" where not measured; no column is empty.
    """
    hits = ("prompted_image_hits_duplicated", "prompted_image_hits")
    last = [key for key in (*hits, quality_key(scores)) if key]
    last = [key for key in last if read_estimate(scores, key)][:1]
    wanted = ("copied_share", "copied_images", "dataset_similarity", "similarity_mean")
    rows: list[tuple[str, ...]] = [_HEAD]
    for key in (*wanted, *last):
        if estimate := read_estimate(scores, key):
            value, interval = (
                format_value(key, estimate.value),
                format_interval(key, estimate),
            )
            others = (read_estimate(scores, f"{name}_{key}") for name in _SETS)
            baselines = (format_value(key, e.value) if e else "" for e in others)
            rows.append((score_label(key), value, interval, *baselines))
    if len(rows) == 1:
        return []
    kept = [i for i in range(len(_HEAD)) if any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Writes rows as lines with their columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
