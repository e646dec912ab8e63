"""What the report says of detectors of memorised prompts: rows of a table, and figures."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from copymit.report.detection_figures import plot_roc, plot_tokens
from copymit.report.evaluated_run import Detection
from copymit.report.verdict import format_interval, format_value, read_estimate
from copymit.scores.detection import AUC, COMPARISONS, DETECTOR_SCORES, compute_roc

NUM_TOKEN_FIGURES = 4


class DetectorRow(NamedTuple):
    """How good a detector is.

    Attributes:
      cells: (value, interval) of each of `DETECTOR_SCORES` in each of `COMPARISONS`;
        None where there are none.
    """

    title: str
    cells: list[tuple[str, str] | None]


def tabulate_detectors(detection: Detection) -> list[DetectorRow]:
    """Lists the detectors with their scores, the best first."""
    summary = detection.summary

    def quality(name: str) -> float:
        return -sum(summary[c][name][AUC] for c in COMPARISONS if c in summary)

    rows = []
    for name in sorted(summary["titles"], key=quality):
        cells: list[tuple[str, str] | None] = []
        for comparison in COMPARISONS:
            scores = summary.get(comparison, {}).get(name, {})
            for key in DETECTOR_SCORES:
                found = read_estimate(scores, key)
                cells.append(
                    found
                    and (format_value(key, found.value), format_interval(key, found))
                )
        rows.append(DetectorRow(summary["titles"][name], cells))
    return rows


def draw_detection(detection: Detection) -> dict[str, tuple[Figure, str]]:
    """Draws ROC curves, and the tokens of the prompts that look most memorised."""
    drawn: dict[str, tuple[Figure, str]] = {}
    table, titles = detection.table, detection.summary["titles"]
    memorised = table["memorised"].to_numpy(bool)
    if memorised.any() and not memorised.all():
        curves = {
            title: compute_roc(table[name].to_numpy(np.float64), memorised)
            for name, title in titles.items()
        }
        drawn["roc"] = (
            plot_roc(curves),
            "Share of memorised prompts found against share of others called memorised, "
            "for each detector.",
        )
    first = next(iter(titles))
    order = np.argsort(-table[first].to_numpy(np.float64), kind="stable")
    for number, row in enumerate(order[:NUM_TOKEN_FIGURES], 1):
        entry = detection.tokens[row]
        drawn[f"tokens_{number}"] = (
            plot_tokens(entry["tokens"], np.asarray(entry["attribution"])),
            f"Bars: how much each token of the prompt “{entry['prompt']}” contributes.",
        )
    return drawn
