"""Draws docs/pairs.png and prints README's table, of what `make demo` has made.

    python -m docs.pictures runs/demo runs/demo-multiple-captions runs/demo-control

The first is the run pictured; the others are columns of the table.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from copymit.evaluation.artefacts import open_artefacts
from copymit.evaluation.report_stage import load_evaluated_run
from copymit.evaluation.subject import open_finished
from copymit.report.evaluated_run import EvaluatedRun
from copymit.report.verdict import format_interval, format_value, read_estimate

ROWS = {
    "copied_share": "generations that are copies",
    "prompted_image_hits_duplicated": "duplicated images that come back",
    "prompted_image_hits_unduplicated": "other images that come back",
    "dataset_similarity": "dataset similarity, 95th percentile",
}
PAIRS = 8


def main(workdirs: list[str]) -> None:
    """Draws the first run's pairs, and prints a column for each run."""
    subject = open_finished(workdirs[0])
    figure = draw_pairs(load_evaluated_run(subject, open_artefacts(subject)))
    figure.savefig(Path(__file__).parent / "pairs.png")
    scores = [
        json.loads((Path(open_finished(w).out) / "scores.json").read_text())
        for w in workdirs
    ]
    for key, words in ROWS.items():
        print(f"| {words} | {' | '.join(_cell(s, key) for s in scores)} |")


def draw_pairs(run: EvaluatedRun) -> Figure:
    """Draws training images over the most similar generation of each, nearest first."""
    nearest = run.matches[run.matches["rank"] == 0]
    best = nearest.sort_values("similarity").drop_duplicates("reference", keep="last")
    shown = best[::-1][:PAIRS]
    figure = Figure(figsize=(PAIRS, 2.1), dpi=120)
    axes = figure.subplots(2, PAIRS)
    for column, pair in zip(axes.T, shown.itertuples(), strict=True):
        pictures = (
            run.read_reference(pair.reference),
            run.read_generation(pair.generation),
        )
        for place, picture in zip(column, pictures, strict=True):
            place.imshow(np.asarray(picture), interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("training")
    axes[1, 0].set_ylabel("generated")
    figure.subplots_adjust(0.03, 0.01, 0.999, 0.99, wspace=0.04, hspace=0.04)
    return figure


def _cell(scores: dict, key: str) -> str:
    estimate = read_estimate(scores, key)
    if estimate is None:
        return "–"
    text = f"{format_value(key, estimate.value)} {format_interval(key, estimate)}"
    return text.replace("\N{NO-BREAK SPACE}", " ")


if __name__ == "__main__":
    main(sys.argv[1:])
