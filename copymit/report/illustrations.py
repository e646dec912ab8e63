"""The figures of one report: which there is data for, drawn, saved and described.

An evaluated run and those beside it enter; PNG files and the same pictures for the page
leave.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath
from matplotlib.figure import Figure

from copymit.report import figures
from copymit.report.comparison import comparison_panels, tradeoff_panels
from copymit.report.detection import draw_detection
from copymit.report.evaluated_run import EvaluatedRun, Generation, duplicated_weights
from copymit.report.verdict import Estimate, read_estimate
from copymit.scores.bootstrap import finite_vector
from copymit.storage import write_whole

_NAMES = (
    "histogram",
    "split",
    "hits",
    "comparison",
    "tradeoff",
    "loss",
    "copying",
    "roc",
    "tokens_1",
    "tokens_2",
    "tokens_3",
    "tokens_4",
)
_HITS = {
    "prompted_image_hits": "all",
    "prompted_image_hits_duplicated": "duplicated",
    "prompted_image_hits_unduplicated": "not duplicated",
}


class EmbeddedFigure(NamedTuple):
    """A figure in the page: `data:` address, size in pixels, what it shows in words."""

    address: str
    width: int
    height: int
    alt: str


def write_figures(
    folder: epath.Path, drawn: Mapping[str, tuple[Figure, str]]
) -> dict[str, EmbeddedFigure]:
    """Saves figures as PNG and returns them for the page; drops those of a past run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        if name not in drawn:
            (folder / f"{name}.png").unlink(missing_ok=True)
    embedded = {}
    for name, (figure, alt) in drawn.items():
        data = figures.to_png(figure)
        write_whole(folder / f"{name}.png", data)
        address = "data:image/png;base64," + base64.b64encode(data).decode()
        width, height = (round(x * figures.DPI) for x in figure.get_size_inches())
        embedded[name] = EmbeddedFigure(address, width, height, alt)
    return embedded


def draw_figures(
    runs: Sequence[EvaluatedRun], generations: Sequence[Generation]
) -> dict[str, tuple[Figure, str]]:
    """Draws the figures that there is data for, each with a text for who cannot see."""
    run = runs[0]
    embedder = str(run.scores.get("embedder", "similarity"))
    drawn: dict[str, tuple[Figure, str]] = {}
    similarities = {
        name: finite_vector(run.similarities[name], f"{name} similarities")
        for name in figures.SERIES
        if name in run.similarities and len(run.similarities[name])
    }
    if similarities:
        names = " and ".join(similarities)
        threshold = read_estimate(run.scores, "copy_threshold")
        drawn["histogram"] = (
            figures.plot_histogram(
                similarities, embedder, threshold and threshold.value
            ),
            f"Histogram of similarity to the nearest training image: {names}.",
        )
    groups, means = _split(run, generations)
    if groups:
        baseline = read_estimate(run.scores, "background_similarity_mean")
        drawn["split"] = (
            figures.plot_split(groups, means, baseline and baseline.value, embedder),
            "Similarity of generations to their nearest training image, split in two: "
            + " and ".join(groups)
            + ".",
        )
    hits = _read_all(run.scores, _HITS)
    if hits:
        drawn["hits"] = (
            figures.plot_hits(hits),
            "Bars: share of generations nearest to the image that prompted them.",
        )
    if len(runs) > 1:
        drawn |= _draw_comparison(runs, embedder)
    losses = [(r.title, t) for r in runs if (t := _losses(r.metrics)) is not None]
    if losses:
        drawn["loss"] = (figures.plot_loss(losses), "Loss over training steps.")
    copying = _copying(run.metrics)
    if copying is not None:
        baseline = read_estimate(run.scores, "background_dataset_similarity")
        drawn["copying"] = (
            figures.plot_copying(copying, baseline and baseline.value),
            "Dataset similarity, and shares of prompted images that come back, over "
            "training steps.",
        )
    return drawn | (draw_detection(run.detection) if run.detection else {})


def _draw_comparison(
    runs: Sequence[EvaluatedRun], embedder: str
) -> dict[str, tuple[Figure, str]]:
    drawn = {}
    titles = [run.title for run in runs]
    panels = comparison_panels(runs)
    if panels:
        drawn["comparison"] = (
            figures.plot_comparison(titles, panels),
            "The scores of the table for each run, as points with intervals.",
        )
    panels = tradeoff_panels(runs)
    if panels:
        similarities = [read_estimate(r.scores, "dataset_similarity") for r in runs]
        drawn["tradeoff"] = (
            figures.plot_tradeoff(titles, similarities, panels, embedder),
            "Dataset similarity of each run against "
            + " and ".join(panel.title for panel in panels)
            + ".",
        )
    return drawn


def _split(
    run: EvaluatedRun, generations: Sequence[Generation]
) -> tuple[dict[str, np.ndarray], dict[str, Estimate]]:
    """Splits similarities by whether the prompted image was duplicated.

    Without prompts the nearest image takes its place.
    """
    duplicated = duplicated_weights(run)
    if not duplicated:
        return {}, {}
    if any(g.prompted for g in generations):
        pairs = [(g.prompted in duplicated, g) for g in generations if g.prompted]
        names = {
            "prompted_duplicated_similarity_mean": "prompted by\nduplicated",
            "prompted_unduplicated_similarity_mean": "prompted by\nothers",
        }
    else:
        pairs = [(g.reference in duplicated, g) for g in generations]
        names = {
            "similarity_to_duplicated": "nearest is\nduplicated",
            "similarity_to_unduplicated": "nearest is\nanother",
        }
    groups = {
        name: np.array([g.similarity for inside, g in pairs if inside == wanted])
        for name, wanted in zip(names.values(), (True, False), strict=True)
    }
    groups = {name: values for name, values in groups.items() if len(values)}
    return groups, _read_all(run.scores, names)


def _read_all(
    scores: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Estimate]:
    """Reads the scores that were measured, under their names for a reader."""
    found = {name: read_estimate(scores, key) for key, name in names.items()}
    return {name: estimate for name, estimate in found.items() if estimate}


def _losses(metrics: pd.DataFrame | None) -> pd.DataFrame | None:
    """Is the loss by step where it was logged at least twice, or None."""
    if metrics is None:
        return None
    table = metrics[["step", "loss"]].astype(np.float64).sort_values("step")
    table = table[np.isfinite(table["loss"])].reset_index(drop=True)
    return table if len(table) > 1 else None


def _copying(metrics: pd.DataFrame | None) -> pd.DataFrame | None:
    """Is what was measured of copying while training, at least twice, or None."""
    if metrics is None:
        return None
    names = [name for name in figures.COPYING if name in metrics]
    table = metrics[["step", *names]].dropna() if names else metrics[:0]
    return table.astype(np.float64).sort_values("step") if len(table) > 1 else None
