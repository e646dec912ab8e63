"""Single generations: where their matches lie, and two of their numbers."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from configs.sweeps_types import Clusters, Scatter
from launch.estimates import estimate
from launch.figures.style import COLORS, MARKERS, add_legend, groups


def draw_clusters(
    axes: Axes, panel: Clusters, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws each generation at the cluster of its match, the most similar ones on top.

    Source: Somepalli et al. 2023, Figure 2.
    """
    del table
    points = complete(points, panel)
    low = float(points["similarity"].quantile(0.05))
    for number, (series, rows) in enumerate(groups(points, panel.series)):
        rows = rows.sort_values("similarity")
        drawn = axes.scatter(
            rows["image_similarity"],
            rows["caption_similarity"],
            22,
            c=rows["similarity"],
            cmap="viridis",
            vmin=low,
            vmax=float(points["similarity"].max()),
            marker=MARKERS[number % len(MARKERS)],
            alpha=0.8,
            linewidths=0,
            label=series or None,
        )
    axes.figure.colorbar(drawn, ax=axes, label="similarity of the generation")
    axes.set_xlabel("similarity of images in the cluster of its match")
    axes.set_ylabel("similarity of captions in it")
    if panel.series:
        axes.legend()


def draw_scatter(
    axes: Axes, panel: Scatter, table: pd.DataFrame, points: pd.DataFrame
) -> None:
    """Draws the generations of all trials, and Pearson's r as their scores have it.

    Source: Somepalli et al. 2023, on the complexity of images.
    """
    points = complete(points, panel).reset_index(drop=True)
    trials = dict(groups(table, panel.series))
    colors = np.empty(len(points), object)
    for number, (series, rows) in enumerate(groups(points, panel.series)):
        color = COLORS[number % len(COLORS)]
        colors[rows.index] = color
        name = _with_correlation(series, estimate(trials[series], panel.correlation))
        x = rows[panel.x].to_numpy(float)
        ends = np.array([x.min(), x.max()]) if np.ptp(x) else np.array([])
        line = np.polyfit(x, rows[panel.y], 1) if len(ends) else [0.0]
        drawn = axes.plot(ends, np.polyval(line, ends), color=color, label=name)[0]
        drawn.set_path_effects([withStroke(linewidth=3, foreground="white")])
    # In a random order no series hides the others.
    order = np.random.default_rng(0).permutation(len(points))
    axes.scatter(
        points[panel.x].to_numpy()[order],
        points[panel.y].to_numpy()[order],
        float(np.clip(400 / np.sqrt(len(points)), 4, 18)),
        c=colors[order].tolist(),
        alpha=float(np.clip(12 / np.sqrt(len(points)), 0.15, 0.6)),
        linewidths=0,
    )
    if points[panel.x].max() >= 10_000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    add_legend(axes, panel.series, 1)


def _with_correlation(name: str, found: Any) -> str:
    """Names a series with its Pearson's r, and its interval over seeds if there is one."""
    parts = [name] if name else []
    if found is not None:
        text = f"r = {found.mean:.2f}"
        if not np.isnan(found.low):
            text += f" [{found.low:.2f}, {found.high:.2f}]"
        parts.append(text.replace("-", "\N{MINUS SIGN}"))
    return ": ".join(parts) or "least squares"


def complete(points: pd.DataFrame, panel: Clusters | Scatter) -> pd.DataFrame:
    """Keeps the generations of which all is known that a panel draws."""
    in_cluster = ("image_similarity", "caption_similarity")
    wanted = list(in_cluster if isinstance(panel, Clusters) else panel.columns)
    if not set(wanted) <= set(points):
        return points.iloc[:0]
    return points.dropna(subset=wanted)
