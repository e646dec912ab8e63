"""Every score as a row for a reader: key, value, interval and meaning, in groups.

Flat scores enter, named groups of rows leave.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from copymit.report.verdict import format_interval, format_value, read_estimate
from copymit.scores.names import SCORES, Known, look_up

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

    None, `alarms`, `warnings` and the `_ci95` of a listed score make no row of their own.
    """
    first = str(scores.get("embedder", ""))
    order = list(_GROUPS)
    groups: dict[tuple[bool, int, str], list[tuple[int, Row]]] = {}
    for key in scores:
        row = _row(scores, key)
        if row is None:
            continue
        found = look_up(key)
        group, rank, second = "other", len(SCORES), ""
        if found:
            group, rank, second = _group(found), found.rank, found.embedder
            row = row._replace(meaning=_meaning(found, row))
        embedder = second or (first if group in _BY_EMBEDDER else "")
        heading = _GROUPS[group] + (f" (by {embedder})" if embedder else "")
        place = (bool(second), order.index(group), heading)
        groups.setdefault(place, []).append((rank, row))
    return [
        Group(place[-1], [row for _, row in sorted(rows, key=lambda r: r[0])])
        for place, rows in sorted(groups.items())
    ]


def _row(scores: Mapping[str, Any], key: str) -> Row | None:
    value = scores[key]
    if value is None or key in ("alarms", "warnings"):
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


def _group(found: Known) -> str:
    group = found.score.group
    return found.images if found.images and group == "generations" else group


def _meaning(found: Known, row: Row) -> str:
    """Is what a score means, and whether its interval is missing."""
    meaning = found.score.meaning.replace("`", "").replace("*", "")
    if found.score.higher:
        meaning += f"; higher is {found.score.higher}"
    if found.score.interval and not row.interval:
        meaning += "; no interval: nothing here tells the spread"
    return meaning
