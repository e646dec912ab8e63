"""Averages over seeds: curves over a number that was varied, bars of what was named."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from configs.sweeps_types import Bars, Curves, Score
from launch.estimates import estimate
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


def draw_curves(
    axes: Axes, panel: Curves, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws a line for each series, with intervals over seeds."""
    del points
    baselines = []
    for number, (name, rows) in enumerate(groups(table, panel.series)):
        color = COLORS[number % len(COLORS)]
        by_x = [(x, estimate(group, panel.y)) for x, group in rows.groupby(panel.x)]
        known = [(x, found) for x, found in by_x if found is not None]
        axes.errorbar(
            [float(x) for x, _ in known],
            [found.mean for _, found in known],
            yerr=whiskers([found for _, found in known]) if known else None,
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.1,
            capsize=3,
            label=name or None,
        )
        if panel.baseline and (found := estimate(rows, panel.baseline)):
            baselines.append((found.mean, color))
    _draw_baselines(axes.axhline, panel.baseline, baselines)
    if panel.log:
        axes.set_xscale("log")
    values = sorted(table[panel.x].dropna().astype(float).unique())
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    finish(axes, panel.x_label, panel.y, panel.series)


def draw_bars(
    axes: Axes, panel: Bars, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws a lying bar for each name, from the top: names are long."""
    del points
    names = [str(name) for name in table[panel.x].unique()]
    series = groups(table, panel.series)
    width = 0.8 / len(series)
    lows, baselines = [0.0], []
    for number, (name, rows) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        by_name = [(names.index(k), g) for k, g in groups(rows, panel.x)]
        known = [(i, found) for i, g in by_name if (found := estimate(g, panel.y))]
        offset = (number - (len(series) - 1) / 2) * width
        axes.barh(
            [i + offset for i, _ in known],
            [found.mean for _, found in known],
            0.92 * width,
            xerr=whiskers([found for _, found in known]) if known else None,
            color=color,
            alpha=0.85,
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 3},
            label=name or None,
        )
        lows += [found.mean for _, found in known]
        if panel.baseline and (found := estimate(rows, panel.baseline)):
            baselines.append((found.mean, color))
    _draw_baselines(axes.axvline, panel.baseline, baselines)
    if panel.chance is not None:
        axes.axvline(
            panel.chance, color=INK, linestyle=":", linewidth=1.2, label="chance"
        )
    if min(lows) < 0:
        axes.axvline(0, color=GREY, linewidth=0.8)
    spare = max(0.0, 3 - len(names)) / 2  # a bar alone would fill the panel
    axes.set_ylim(len(names) - 0.5 + spare, -0.5 - spare)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylabel(panel.x_label)
    axes.grid(axis="y", visible=False)
    finish_lying(axes, panel.y.label, panel.y, panel.series)


def _draw_baselines(
    draw_line: Callable[..., Any],
    score: Score | None,
    lines: Sequence[tuple[float, str]],
) -> None:
    """Draws one dashed line for each series, or one for all where they agree."""
    if score is None or not lines:
        return
    means = [mean for mean, _ in lines]
    if np.ptp(means) < 1e-3:
        lines = [(float(np.mean(means)), GREY)]
    for number, (mean, color) in enumerate(lines):
        label = score.label if number == 0 else None
        draw_line(mean, color=color, linestyle="--", linewidth=1.2, label=label)
