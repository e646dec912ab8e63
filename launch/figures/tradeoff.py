"""What a gain costs: two scores against each other, and changes against a baseline."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from configs.sweeps_types import Differences, Tradeoff
from launch.estimates import Estimate, estimate, estimate_change
from launch.figures.style import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    finish,
    finish_lying,
    groups,
    whiskers,
)

_HALO = withStroke(linewidth=2.5, foreground="white")
# From a point to the places of its name: first those without whiskers.
_DIRECTIONS = np.array(
    [(1, 1), (-1, -1), (-1, 1), (1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
)


def draw_tradeoff(
    axes: Axes, panel: Tradeoff, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws every setting; what no other beats in both scores is named and stands out."""
    del points
    table = chosen(table, panel.only)
    settings: list[tuple[str, Estimate, Estimate, str, str]] = []
    for number, (series, rows) in enumerate(groups(table, panel.series)):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        axes.plot([], [], marker, color=color, label=series or None)
        for name, group in groups(rows, panel.point):
            x, y = estimate(group, panel.x), estimate(group, panel.y)
            if x is not None and y is not None:
                settings.append((name, x, y, color, marker))
    sign = 1 if panel.x_low_is_good else -1
    front = pareto_front([(sign * x.mean, y.mean) for _, x, y, _, _ in settings])
    axes.plot(
        [settings[i][1].mean for i in front],
        [settings[i][2].mean for i in front],
        color=GREY,
        linewidth=1.0,
        linestyle=":",
        drawstyle="steps-post",
        label="not beaten in both",
    )
    for i, (name, x, y, color, marker) in enumerate(settings):
        shown = i in front or name == panel.reference
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=whiskers([x]),
            yerr=whiskers([y]),
            color=(color, 1.0 if shown else 0.45),
            marker=marker,
            markersize=7 if shown else 5,
            elinewidth=0.9,
            ecolor=(color, 0.5 if shown else 0.12),
            zorder=3 if shown else 2,
        )
        if shown:
            text = axes.text(x.mean, y.mean, name, fontsize=9, color=color, zorder=4)
            text.set_path_effects([_HALO])
    title = f"{panel.only[0]}: {panel.only[1]}" if panel.only else panel.series
    finish(axes, panel.x.label, panel.y, title)
    if panel.x.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def part_names(axes: Axes) -> None:
    """Moves each name in a laid out panel to the nearest place that is free.

    There it covers no other name and no point that has one; a line leads to a point that
    is not beside it.
    """
    marker = axes.figure.dpi / 12  # pixels of six points
    panel = axes.get_window_extent()
    points = [axes.transData.transform(text.get_position()) for text in axes.texts]
    taken = [Bbox([point - marker / 2, point + marker / 2]) for point in points]
    for text, point in zip(axes.texts, points, strict=True):
        size = np.array(text.get_window_extent().size)
        for ring, direction in itertools.product(range(1, 8), _DIRECTIONS):
            center = point + ring * (size / 2 + 0.6 * marker) * direction
            box = Bbox([center - size / 2, center + size / 2])
            inside = panel.containsx(box.x0) and panel.containsx(box.x1)
            inside &= panel.containsy(box.y0) and panel.containsy(box.y1)
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)
        text.set(position=axes.transData.inverted().transform(center))
        text.set(horizontalalignment="center", verticalalignment="center")
        if ring > 1:
            ends = axes.transData.inverted().transform([point, center])
            axes.plot(*ends.T, color=GREY, linewidth=0.6, scalex=False, scaley=False)


def chosen(table: pd.DataFrame, only: tuple[str, str] | None) -> pd.DataFrame:
    """Keeps the trials of which a label has a value."""
    return table if only is None else table[table[only[0]] == only[1]]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Lists, in order of x, the points that no other beats in both; lower is better."""
    front: list[int] = []
    best = np.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return front


def draw_differences(
    axes: Axes, panel: Differences, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws a row for each setting: how far it lies from the baseline, by seed."""
    del points
    names = _in_order(panel, table)
    parts = groups(table, panel.series)
    for number, (series, rows) in enumerate(parts):
        color = COLORS[(number + 1) % len(COLORS)]
        by_name = groups(rows, panel.changes.label)
        found = [
            (name, estimate_change(group, table, panel.y, panel.changes))
            for name, group in by_name
            if name in names
        ]
        known = [(name, change) for name, change in found if change is not None]
        offset = 0.36 * ((number + 0.5) / len(parts) - 0.5)
        axes.errorbar(
            [change.mean for _, change in known],
            [names.index(name) + offset for name, _ in known],
            xerr=whiskers([change for _, change in known]) if known else None,
            linestyle="none",
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            elinewidth=1.1,
            label=series or None,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.locator_params(axis="x", nbins=6)
    finish_lying(axes, f"change of {panel.y.label}", panel.y, panel.series)


def _in_order(panel: Differences, table: pd.DataFrame) -> list[str]:
    """Lists the settings by their change of the first score, largest fall first."""
    first = panel.changes.scores[0]
    _, rows = groups(table, panel.series)[0]
    sized = [
        (np.inf if change is None else change.mean, name)
        for name, group in groups(rows, panel.changes.label)
        if name != panel.changes.baseline
        for change in [estimate_change(group, table, first, panel.changes)]
    ]
    return [name for _, name in sorted(sized)]
