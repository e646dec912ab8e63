"""The report stage: an evaluated run in, `report.html` and `figures/*.png` out.

The page is one file that loads nothing: images and figures are inside, no script is
needed, and every text from outside is escaped.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from etils import epath
from markupsafe import Markup
from matplotlib.figure import Figure

import copymit
from copymit.report import figures
from copymit.report.comparison import (
    compare_scores,
    comparison_panels,
    describe_difference,
    differing_settings,
    make_strip,
    measured_differently,
)
from copymit.report.evaluated_run import (
    EvaluatedRun,
    Generation,
    duplicated_weights,
    list_generations,
)
from copymit.report.gallery import make_galleries
from copymit.report.score_table import tabulate_scores
from copymit.report.verdict import (
    Estimate,
    format_interval,
    format_number,
    format_value,
    make_headline,
    make_tiles,
    read_estimate,
)
from copymit.scores.bootstrap import finite_vector

_TEMPLATE = Path(__file__).parent / "page.html.jinja"
_HITS = {
    "prompted_image_hits": "all",
    "prompted_image_hits_duplicated": "duplicated",
    "prompted_image_hits_unduplicated": "not duplicated",
}


_SETS = {
    "generations": "",
    "training images, to each other": "background_",
    "images never trained on": "heldout_",
}
_STATISTICS = {
    "mean": "similarity_mean",
    "75th percentile": "similarity_p75",
    "90th percentile": "similarity_p90",
    "95th percentile": "similarity_p95",
    "share above 0.5": "similarity_above_0.5",
}


class EmbeddedFigure(NamedTuple):
    """A figure in the page: `data:` address, size in pixels, what it shows in words."""

    address: str
    width: int
    height: int
    alt: str


def write_report(
    directory: epath.Path,
    run: EvaluatedRun,
    compared: Sequence[EvaluatedRun] = (),
    *,
    gallery_size: int = 24,
) -> epath.Path:
    """Writes the page of one run and its figures; the same input gives the same bytes.

    What was not measured is left out.

    Args:
      directory: receives `report.html` and `figures/`; made if absent.
      compared: other runs to show beside it.
      gallery_size: number of most copied generations to show; a third of it for the
        typical and the least copied ones.
    Returns:
      The path of the page.
    Raises:
      ValueError: for a negative gallery size, tables without their columns, matches
        that are empty or not finite, or images that are not uint8 RGB.
    """
    if gallery_size < 0:
        raise ValueError(f"gallery_size is {gallery_size}; give 0 or more")
    directory = epath.Path(directory)
    runs = [run, *compared]
    generations = [list_generations(r) for r in runs]
    embedded = _write_figures(directory / "figures", _draw(runs, generations[0]))
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "breakable": _breakable}
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        run=run,
        headline=make_headline(run.scores),
        tiles=make_tiles(run.scores),
        figures=embedded,
        distributions=_distributions(run.scores),
        galleries=make_galleries(run, generations[0], gallery_size),
        knows_duplication=run.duplication is not None,
        runs=runs,
        comparison=compare_scores(runs) if compared else [],
        differences=[describe_difference(run.scores, r.scores) for r in compared],
        differing=differing_settings(runs) if compared else [],
        measured_differently=measured_differently(runs),
        strip=make_strip(runs, generations, gallery_size // 3) if compared else None,
        groups=tabulate_scores(run.scores),
        settings=sorted((k, str(v)) for k, v in run.settings.items()),
        warnings=[str(w) for w in run.scores.get("warnings") or ()],
        version=copymit.__version__,
    )
    path = directory / "report.html"
    # File names may hold bytes that are no text (lone surrogates).
    path.write_bytes(page.encode("utf-8", "backslashreplace"))
    return path


def _draw(
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
        drawn["histogram"] = (
            figures.plot_histogram(similarities, embedder),
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
    panels = comparison_panels(runs) if len(runs) > 1 else []
    if panels:
        drawn["comparison"] = (
            figures.plot_comparison([r.title for r in runs], panels),
            "The scores of the table for each run, as points with intervals.",
        )
    losses = [(r.title, t) for r in runs if (t := _losses(r.metrics)) is not None]
    if losses:
        drawn["loss"] = (figures.plot_loss(losses), "Loss over training steps.")
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


def _distributions(
    scores: Mapping[str, Any],
) -> list[tuple[str, dict[str, tuple[str, str] | None]]]:
    """Is, by set of images, each statistic of similarity with its interval."""
    table = []
    for name, prefix in _SETS.items():
        cells: dict[str, tuple[str, str] | None] = {}
        for statistic, key in _STATISTICS.items():
            found = read_estimate(scores, prefix + key)
            cells[statistic] = found and (
                format_value(key, found.value),
                format_interval(key, found),
            )
        if any(cells.values()):
            table.append((name, cells))
    return table


def _breakable(name: str) -> Markup:
    """Is a dotted or underscored name that may continue on the next line."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", name))


def _losses(metrics: pd.DataFrame | None) -> pd.DataFrame | None:
    """Is the loss by step where it was logged at least twice, or None."""
    if metrics is None:
        return None
    table = metrics[["step", "loss"]].astype(np.float64).sort_values("step")
    table = table[np.isfinite(table["loss"])].reset_index(drop=True)
    return table if len(table) > 1 else None


def _write_figures(
    folder: epath.Path, drawn: Mapping[str, tuple[Figure, str]]
) -> dict[str, EmbeddedFigure]:
    """Saves figures as PNG and returns them for the page; drops those of a past run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("histogram", "split", "hits", "comparison", "loss"):
        if name not in drawn:
            (folder / f"{name}.png").unlink(missing_ok=True)
    embedded = {}
    for name, (figure, alt) in drawn.items():
        data = figures.to_png(figure)
        (folder / f"{name}.png").write_bytes(data)
        address = "data:image/png;base64," + base64.b64encode(data).decode()
        width, height = (round(x * figures.DPI) for x in figure.get_size_inches())
        embedded[name] = EmbeddedFigure(address, width, height, alt)
    return embedded
