"""The figure of a sweep: a table of scores in, PNG bytes out.

Panels side by side, each with intervals over seeds; no global state of matplotlib is
touched.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import (
    EngFormatter,
    NullLocator,
    PercentFormatter,
    ScalarFormatter,
)

from configs.sweeps_types import (
    Bars,
    Clusters,
    Curves,
    Panel,
    Scatter,
    Score,
    Tradeoff,
)

DPI = 150
# Okabe and Ito's palette: told apart with any kind of colour vision.
_COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f6b7a")
_MARKERS = "osD^vPX*"
_GREY = "#5f6b7a"
_CLUSTER = ("image_similarity", "caption_similarity")
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ae",
    "axes.labelcolor": "#333b46",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "text.color": "#1b222b",
    "text.parse_math": False,
    "xtick.color": "#9aa3ae",
    "ytick.color": "#9aa3ae",
    "xtick.labelcolor": "#333b46",
    "ytick.labelcolor": "#333b46",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
Estimator = Callable[[pd.DataFrame, Score], Any]
"""(rows of one setting, score) -> mean, low and high, or None."""


@matplotlib.style.context(["default", _STYLE])
def draw(
    panels: Sequence[Panel],
    table: pd.DataFrame,
    points: pd.DataFrame,
    estimate: Estimator,
) -> bytes:
    """Draws panels that have data; the same table gives the same bytes.

    Args:
      table: a row for each trial.
      points: a row for each generation, for `Clusters` and `Scatter`.
    """
    drawable = [panel for panel in panels if _has_data(panel, table, points)]
    widths = [_width(panel, table) for panel in drawable] or [5.0]
    figure = Figure(figsize=(sum(widths), 4.4), layout="constrained")
    axes = figure.subplots(
        1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths}
    )[0]
    for panel, place in zip(drawable, axes, strict=False):
        if isinstance(panel, Curves):
            _draw_curves(place, panel, table, estimate)
        elif isinstance(panel, Bars):
            _draw_bars(place, panel, table, estimate)
        elif isinstance(panel, Tradeoff):
            _draw_tradeoff(place, panel, table, estimate)
        elif isinstance(panel, Clusters):
            _draw_clusters(place, panel, _complete(points, _CLUSTER))
        else:
            _draw_scatter(place, panel, table, points, estimate)
    if not drawable:
        axes[0].text(0.5, 0.5, "no trial has these scores", ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _has_data(panel: Panel, table: pd.DataFrame, points: pd.DataFrame) -> bool:
    if isinstance(panel, Clusters):
        return not _complete(points, _CLUSTER).empty
    if isinstance(panel, Scatter):
        return not _complete(points, (panel.x, panel.y)).empty
    wanted = [panel.y]
    if isinstance(panel, Tradeoff):
        wanted, table = [panel.y, panel.x], _chosen(table, panel.only)
    return all(
        any(key in table and table[key].notna().any() for key in score.keys)
        for score in wanted
    )


def _complete(points: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Keeps the generations of which all of these are known."""
    if not set(columns) <= set(points):
        return points.iloc[:0]
    return points.dropna(subset=list(columns))


def _width(panel: Panel, table: pd.DataFrame) -> float:
    """Gives bars the room that their names need."""
    if not isinstance(panel, Bars):
        return 6.4 if isinstance(panel, Tradeoff) else 4.6
    return min(max(3.4, 0.95 * table[panel.x].nunique()), 11.0)


def _groups(table: pd.DataFrame, label: str) -> list[tuple[str, pd.DataFrame]]:
    """Divides trials by a label, in the order of appearance; "" is one group."""
    if not label:
        return [("", table)]
    return [(str(k), rows) for k, rows in table.groupby(label, sort=False)]


def _whiskers(found: Sequence[Any]) -> np.ndarray:
    """Returns (2, N) distances below and above; none where the spread is unknown."""
    means = np.array([e.mean for e in found])
    low = np.nan_to_num(means - np.array([e.low for e in found]))
    high = np.nan_to_num(np.array([e.high for e in found]) - means)
    return np.clip(np.stack([low, high]), 0, None)


def _draw_curves(
    axes: Axes, panel: Curves, table: pd.DataFrame, estimate: Estimator
) -> None:
    baselines = []
    for number, (name, rows) in enumerate(_groups(table, panel.series)):
        color = _COLORS[number % len(_COLORS)]
        by_x = [(x, estimate(group, panel.y)) for x, group in rows.groupby(panel.x)]
        known = [(x, found) for x, found in by_x if found is not None]
        axes.errorbar(
            [float(x) for x, _ in known],
            [found.mean for _, found in known],
            yerr=_whiskers([found for _, found in known]) if known else None,
            color=color,
            marker=_MARKERS[number % len(_MARKERS)],
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
    _finish(axes, panel.x_label, panel.y, panel.series)


def _draw_bars(
    axes: Axes, panel: Bars, table: pd.DataFrame, estimate: Estimator
) -> None:
    names = [str(name) for name in table[panel.x].unique()]
    groups = _groups(table, panel.series)
    width = 0.8 / len(groups)
    lows, baselines = [], []
    for number, (series, rows) in enumerate(groups):
        color = _COLORS[number % len(_COLORS)]
        by_name = [(names.index(k), g) for k, g in _groups(rows, panel.x)]
        known = [(i, found) for i, g in by_name if (found := estimate(g, panel.y))]
        offset = (number - (len(groups) - 1) / 2) * width
        axes.bar(
            [i + offset for i, _ in known],
            [found.mean for _, found in known],
            0.92 * width,
            yerr=_whiskers([found for _, found in known]) if known else None,
            color=color,
            alpha=0.85,
            error_kw={"ecolor": "#1b222b", "elinewidth": 1.1, "capsize": 3},
            label=series or None,
        )
        lows += [found.mean for _, found in known]
        if panel.baseline and (found := estimate(rows, panel.baseline)):
            baselines.append((found.mean, color))
    _draw_baselines(axes, panel.baseline, baselines)
    if min(lows, default=0) < 0:
        axes.axhline(0, color="#9aa3ae", linewidth=0.8)
    spare = max(0.0, 3 - len(names)) / 2  # a bar alone would fill the panel
    axes.set_xlim(-0.5 - spare, len(names) - 0.5 + spare)
    turned = sum(map(len, names)) > 9 * max(len(names), 1)
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=30 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else "default",
    )
    axes.grid(axis="x", visible=False)
    _finish(axes, panel.x_label, panel.y, panel.series)


def _draw_baselines(
    axes: Axes, score: Score | None, lines: Sequence[tuple[float, str]]
) -> None:
    """Draws one dashed line for each series, or one for all where they agree."""
    if score is None or not lines:
        return
    means = [mean for mean, _ in lines]
    if np.ptp(means) < 1e-3:
        lines = [(float(np.mean(means)), _GREY)]
    for number, (mean, color) in enumerate(lines):
        label = score.label if number == 0 else None
        axes.axhline(mean, color=color, linestyle="--", linewidth=1.2, label=label)


def _draw_tradeoff(
    axes: Axes, panel: Tradeoff, table: pd.DataFrame, estimate: Estimator
) -> None:
    """Draws every setting, and names those that no other beats in both scores."""
    table = _chosen(table, panel.only)
    points = []
    for number, (series, rows) in enumerate(_groups(table, panel.series)):
        color, marker = _COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)]
        found = [
            (name, estimate(group, panel.x), estimate(group, panel.y))
            for name, group in _groups(rows, panel.point)
        ]
        known = [(n, x, y) for n, x, y in found if x is not None and y is not None]
        points += [(n, x.mean, y.mean, color) for n, x, y in known]
        axes.errorbar(
            [x.mean for _, x, _ in known],
            [y.mean for _, _, y in known],
            xerr=_whiskers([x for _, x, _ in known]) if known else None,
            yerr=_whiskers([y for _, _, y in known]) if known else None,
            color=color,
            marker=marker,
            markersize=6,
            linestyle="none",
            elinewidth=0.8,
            ecolor=(color, 0.25),
            label=series or None,
        )
    sign = 1 if panel.x_low_is_good else -1
    front = pareto_front([(sign * x, y) for _, x, y, _ in points])
    axes.plot(
        [points[i][1] for i in front],
        [points[i][2] for i in front],
        color=_GREY,
        linewidth=1.0,
        linestyle=":",
        drawstyle="steps-post",
        label="not beaten in both",
    )
    named = [*front, *(i for i, p in enumerate(points) if p[0] == "none")]
    for turn, i in enumerate(dict.fromkeys(named)):
        name, x, y, color = points[i]
        right, up = turn % 4 < 2, turn % 2 == 0  # neighbours on different sides
        axes.annotate(
            name,
            (x, y),
            (6 if right else -6, 5 if up else -12),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=8,
            color=color,
        )
    title = f"{panel.only[0]}: {panel.only[1]}" if panel.only else panel.series
    _finish(axes, panel.x.label, panel.y, title)
    if panel.x.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _chosen(table: pd.DataFrame, only: tuple[str, str] | None) -> pd.DataFrame:
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


def _draw_clusters(axes: Axes, panel: Clusters, points: pd.DataFrame) -> None:
    """Draws each generation at the cluster of its match, the most similar ones on top.

    Source: Somepalli et al. 2023, Figure 2.
    """
    low = float(points["similarity"].quantile(0.05))
    for number, (series, rows) in enumerate(_groups(points, panel.series)):
        rows = rows.sort_values("similarity")
        drawn = axes.scatter(
            rows["image_similarity"],
            rows["caption_similarity"],
            22,
            c=rows["similarity"],
            cmap="viridis",
            vmin=low,
            vmax=float(points["similarity"].max()),
            marker=_MARKERS[number % len(_MARKERS)],
            alpha=0.8,
            linewidths=0,
            label=series or None,
        )
    axes.figure.colorbar(drawn, ax=axes, label="similarity of the generation")
    axes.set_xlabel("similarity of images in the cluster of its match")
    axes.set_ylabel("similarity of captions in it")
    if panel.series:
        axes.legend()


def _draw_scatter(
    axes: Axes,
    panel: Scatter,
    table: pd.DataFrame,
    points: pd.DataFrame,
    estimate: Estimator,
) -> None:
    """Draws the generations of all trials, and Pearson's r as their scores have it.

    Source: Somepalli et al. 2023, on the complexity of images.
    """
    points = _complete(points, (panel.x, panel.y)).reset_index(drop=True)
    trials = dict(_groups(table, panel.series))
    colors = np.empty(len(points), object)
    for number, (series, rows) in enumerate(_groups(points, panel.series)):
        color = _COLORS[number % len(_COLORS)]
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
    _add_legend(axes, panel.series, 1)


def _with_correlation(name: str, found: Any) -> str:
    """Names a series with its Pearson's r, and its interval over seeds if there is one."""
    parts = [name] if name else []
    if found is not None:
        text = f"r = {found.mean:.2f}"
        if not np.isnan(found.low):
            text += f" [{found.low:.2f}, {found.high:.2f}]"
        parts.append(text.replace("-", "\N{MINUS SIGN}"))
    return ": ".join(parts) or "least squares"


def _finish(axes: Axes, x_label: str, y: Score, title: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y.label)
    if y.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _add_legend(axes, title, 2)


def _add_legend(axes: Axes, title: str, columns: int) -> None:
    """Puts a legend above the panel, if anything has a label."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=columns,
            title=title or None,
            title_fontsize=9,
        )
