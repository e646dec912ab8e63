"""Averages over seeds: curves over a number that was varied, bars of what was named."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from configs.sweeps_types import Bars, Curves, Score
from launch.figures.style import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    Estimator,
    add_legend,
    finish,
    groups,
    whiskers,
)


def draw_curves(
    axes: Axes, panel: Curves, table: pd.DataFrame, estimate: Estimator
) -> None:
    """Draws a line for each series, with intervals over seeds."""
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
    _draw_baselines(axes, panel.baseline, baselines)
    if panel.log:
        axes.set_xscale("log")
    values = sorted(table[panel.x].dropna().astype(float).unique())
    axes.set_xticks(values)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    finish(axes, panel.x_label, panel.y, panel.series)


def lies(panel: Bars, table: pd.DataFrame) -> bool:
    """Says whether bars lie, because their names are long."""
    names = table[panel.x].unique()
    return sum(len(str(name)) for name in names) > 14 * max(len(names), 1)


def draw_bars(
    axes: Axes, panel: Bars, table: pd.DataFrame, estimate: Estimator
) -> None:
    """Draws a bar for each name, from the left or, where names are long, from the top."""
    names = [str(name) for name in table[panel.x].unique()]
    series = groups(table, panel.series)
    width, lying = 0.8 / len(series), lies(panel, table)
    lows, baselines = [], []
    for number, (name, rows) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        by_name = [(names.index(k), g) for k, g in groups(rows, panel.x)]
        known = [(i, found) for i, g in by_name if (found := estimate(g, panel.y))]
        spread = whiskers([found for _, found in known]) if known else None
        offset = (number - (len(series) - 1) / 2) * width
        bars = axes.barh if lying else axes.bar
        bars(
            [i + offset for i, _ in known],
            [found.mean for _, found in known],
            0.92 * width,
            color=color,
            alpha=0.85,
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 3},
            label=name or None,
            xerr=spread if lying else None,
            yerr=None if lying else spread,
        )
        lows += [found.mean for _, found in known]
        if panel.baseline and (found := estimate(rows, panel.baseline)):
            baselines.append((found.mean, color))
    _draw_baselines(axes, panel.baseline, baselines, lying)
    line = axes.axvline if lying else axes.axhline
    if panel.chance is not None:
        line(panel.chance, color=INK, linestyle=":", linewidth=1.2, label="chance")
    if min(lows, default=0) < 0:
        line(0, color="#9aa3ae", linewidth=0.8)
    _name_bars(axes, panel, names, lying)


def _name_bars(axes: Axes, panel: Bars, names: Sequence[str], lying: bool) -> None:
    """Labels both axes; the score is along the bars."""
    spare = max(0.0, 3 - len(names)) / 2  # a bar alone would fill the panel
    limits = (-0.5 - spare, len(names) - 0.5 + spare)
    if lying:
        axes.set_ylim(limits[::-1])
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(panel.y.label)
        if panel.y.percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        add_legend(axes, panel.series, 3)
        return
    axes.set_xlim(limits)
    turned = sum(map(len, names)) > 9 * max(len(names), 1)
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=30 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.grid(axis="x", visible=False)
    finish(axes, panel.x_label, panel.y, panel.series)


def _draw_baselines(
    axes: Axes,
    score: Score | None,
    lines: Sequence[tuple[float, str]],
    lying: bool = False,
) -> None:
    """Draws one dashed line for each series, or one for all where they agree."""
    if score is None or not lines:
        return
    means = [mean for mean, _ in lines]
    if np.ptp(means) < 1e-3:
        lines = [(float(np.mean(means)), GREY)]
    draw_line = axes.axvline if lying else axes.axhline
    for number, (mean, color) in enumerate(lines):
        label = score.label if number == 0 else None
        draw_line(mean, color=color, linestyle="--", linewidth=1.2, label=label)
