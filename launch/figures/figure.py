"""The figure of a sweep: a table of scores in, PNG bytes out.

Panels side by side, each with intervals over seeds; no global state of matplotlib is
touched.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.sweeps_types import (
    Bars,
    Clusters,
    Curves,
    Differences,
    Panel,
    Roc,
    Scatter,
    Tradeoff,
)
from launch.estimates import present_key
from launch.figures.averages import draw_bars, draw_curves
from launch.figures.generations import complete, draw_clusters, draw_scatter
from launch.figures.roc import detected, draw_roc
from launch.figures.style import STYLE
from launch.figures.tradeoff import chosen, draw_differences, draw_tradeoff, part_names

_DRAW: dict[type, Callable[[Axes, Any, pd.DataFrame, pd.DataFrame], None]] = {
    Curves: draw_curves,
    Bars: draw_bars,
    Tradeoff: draw_tradeoff,
    Differences: draw_differences,
    Clusters: draw_clusters,
    Scatter: draw_scatter,
    Roc: draw_roc,
}
DPI = 150
_ROW_INCHES = 18.4  # of panels; what does not fit goes below


@matplotlib.style.context(["default", STYLE])
def draw(
    panels: Sequence[Panel],
    table: pd.DataFrame,
    points: pd.DataFrame,
    warning: str = "",
) -> bytes:
    """Draws panels that have data; the same table gives the same bytes.

    Args:
      table: a row for each trial.
      points: a row for each generation, for `Clusters` and `Scatter`, or prompt, for
        `Roc`.
      warning: what a reader must know who sees nothing but the figure.
    """
    drawable = [panel for panel in panels if _has_data(panel, table, points)]
    rows = _rows([(panel, *_inches(panel, table)) for panel in drawable])
    width = max((sum(w for _, w, _ in row) for row in rows), default=5.0)
    heights = [max(h for _, _, h in row) for row in rows] or [4.4]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    if warning:
        figure.suptitle(warning, color="tab:red", fontsize="medium")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    tradeoffs: list[Axes] = []
    for number, row in enumerate(rows):
        ratios = [w for _, w, _ in row]
        cells = grid[number].subgridspec(1, len(row), width_ratios=ratios)
        for (panel, _, _), axes in zip(
            row, cells.subplots(squeeze=False)[0], strict=True
        ):
            _DRAW[type(panel)](axes, panel, table, points)
            tradeoffs += [axes] if isinstance(panel, Tradeoff) else []
    figure.draw_without_rendering()  # names are put where the layout leaves the points
    for axes in tradeoffs:
        part_names(axes)
    if not rows:
        figure.text(0.5, 0.5, "no trial has these scores", ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _has_data(panel: Panel, table: pd.DataFrame, points: pd.DataFrame) -> bool:
    if isinstance(panel, Clusters | Scatter):
        return not complete(points, panel).empty
    if isinstance(panel, Roc):
        return bool(detected(points, panel).get("memorised", pd.Series()).any())
    trials = chosen(table, panel.only) if isinstance(panel, Tradeoff) else table
    # A dashed line that is not known leaves the rest.
    wanted = panel.scores if isinstance(panel, Tradeoff) else panel.scores[:1]
    return all(present_key(trials, score) for score in wanted)


def _inches(panel: Panel, table: pd.DataFrame) -> tuple[float, float]:
    """Gives a panel (width, height) for the names that are in it."""
    if isinstance(panel, Tradeoff):
        return 7.0, 5.2
    if isinstance(panel, Differences):
        return 6.1, 1.2 + 0.27 * table[panel.changes.label].nunique()
    if isinstance(panel, Roc):
        return 6.4, 4.8 + 0.1 * table[panel.series].nunique()
    if isinstance(panel, Bars):
        return 6.1, max(3.4, 1.4 + 0.4 * table[panel.x].nunique())
    return 4.6, 4.4


def _rows(
    sized: Sequence[tuple[Panel, float, float]],
) -> list[list[tuple[Panel, float, float]]]:
    """Divides panels, in order, into few rows of about one length."""
    few = len(_filled(sized, _ROW_INCHES))
    widths = [width for _, width, _ in sized]
    ends = range(len(sized) + 1)
    for length in sorted({sum(widths[i:j]) for i in ends for j in ends[i:]}):
        if len(rows := _filled(sized, length)) <= few:
            break
    return rows


def _filled(
    sized: Sequence[tuple[Panel, float, float]], length: float
) -> list[list[tuple[Panel, float, float]]]:
    """Divides panels into rows up to a length; a longer panel has one of its own."""
    rows: list[list[tuple[Panel, float, float]]] = []
    for entry in sized:
        if rows and sum(w for _, w, _ in rows[-1]) + entry[1] <= length:
            rows[-1].append(entry)
        else:
            rows.append([entry])
    return rows
