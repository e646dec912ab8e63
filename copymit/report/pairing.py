"""How another run differs from the first: pair by pair where prompts and noise agree.

Two evaluated runs enter; differences with intervals, written out, leave.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from copymit.report.evaluated_run import EvaluatedRun, Generation
from copymit.report.verdict import (
    Estimate,
    format_interval,
    format_value,
    read_estimate,
    score_label,
)
from copymit.scores.paired import Difference, paired_differences, unpaired_difference
from copymit.scores.provenance import dependent_clusters

_KEYS = ("similarity_mean", "dataset_similarity")


class DifferenceRow(NamedTuple):
    """A difference from the first run: number, interval, and what it means or ""."""

    key: str
    label: str
    value: str
    interval: str
    relation: str


class RunDifference(NamedTuple):
    """How one run differs from the first.

    Attributes:
      is_paired: whether the same prompts and noise were compared one by one.
      note: what was compared, for a reader.
    """

    title: str
    is_paired: bool
    rows: list[DifferenceRow]
    note: str

    @property
    def relations(self) -> dict[str, str]:
        """What pairs tell of each score, surer than two intervals do."""
        return {row.key: row.relation for row in self.rows if self.is_paired}


def compare_pairs(
    runs: Sequence[EvaluatedRun], generations: Sequence[Sequence[Generation]]
) -> list[RunDifference]:
    """Compares every other run with the first.

    A pair is the same generation id with the same prompt, as given, and the same seed:
    the noise is the same then, and what a mitigation makes of the prompt may differ.

    Args:
      generations: of each run.
    """
    found = []
    for run, theirs in zip(runs[1:], generations[1:], strict=True):
        pairs = _pair(generations[0], theirs)
        own = [ours for ours, _ in pairs]
        clusters = dependent_clusters(
            [g.prompted for g in own], [g.prompt for g in own]
        )
        if len(set(clusters)) > 1:
            longest = max(len(generations[0]), len(theirs))
            found.append(_paired(run.title, pairs, clusters, longest))
        else:
            found.append(_unpaired(runs[0], run))
    return found


def _pair(
    ours: Sequence[Generation], theirs: Sequence[Generation]
) -> list[tuple[Generation, Generation]]:
    by_id = {g.id: g for g in theirs}
    return [
        (g, by_id[g.id])
        for g in sorted(ours, key=lambda g: g.id)
        if g.id in by_id
        and g.prompt is not None
        and g.seed is not None
        and (g.prompt, g.seed) == (by_id[g.id].prompt, by_id[g.id].seed)
    ]


def _paired(
    title: str,
    pairs: Sequence[tuple[Generation, Generation]],
    clusters: Int[np.ndarray, " P"],
    longest: int,
) -> RunDifference:
    first, second = (np.array([p[i].similarity for p in pairs]) for i in (0, 1))
    found = paired_differences(first, second, clusters)
    rows = [
        _row("similarity_mean", found.mean),
        _row("dataset_similarity", found.dataset_similarity),
        _share_row(found.share_lower),
    ]
    note = (
        f"Paired: {found.num_pairs:,} generations of the same prompt from the same "
        f"noise, in {found.num_clusters:,} groups of one prompted image or prompt; "
        "intervals by bootstrap over these groups."
    )
    if found.num_pairs < longest:
        note += (
            f" {longest - found.num_pairs:,} further generations have no partner and "
            "are left out here."
        )
    return RunDifference(title, True, rows, note)


def _unpaired(first: EvaluatedRun, second: EvaluatedRun) -> RunDifference:
    rows = []
    for key in _KEYS:
        ours, theirs = (read_estimate(run.scores, key) for run in (first, second))
        if ours and theirs:
            rows.append(_row(key, unpaired_difference(ours, theirs)))
    note = (
        "Not paired, as prompts or seeds differ or are not known: each interval counts "
        "the chance in both runs, and is wider than that of pairs would be."
    )
    return RunDifference(second.title, False, rows, note)


def _row(key: str, difference: Difference) -> DifferenceRow:
    relation = ""
    if difference.interval:
        low, high = difference.interval
        relation = "higher" if low > 0 else "lower" if high < 0 else "could be chance"
    return DifferenceRow(
        key, score_label(key), *_write("", difference, signed=True), relation
    )


def _share_row(difference: Difference) -> DifferenceRow:
    value, interval = _write("prompted_image_hits", difference)
    return DifferenceRow(
        "share_lower", "Generations that are less similar", value, interval, ""
    )


def _write(key: str, difference: Difference, signed: bool = False) -> tuple[str, str]:
    """Writes number and interval as other scores are written, with a sign if wanted."""
    low, high = difference.interval or (difference.value, difference.value)
    text = format_value(key, difference.value)
    if signed and difference.value > 0:
        text = f"+{text}"
    return text, format_interval(key, Estimate(difference.value, low, high))
