"""The figures of the report: numbers in, matplotlib figures and PNG bytes out.

No global state: every function builds a `Figure` of its own, so neither a display nor
the caller's matplotlib settings matter. All are on white, which reads on any page.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from copymit.report.verdict import Estimate, format_number

DPI = 150
# Okabe and Ito's palette: told apart with any kind of colour vision.
VERMILLION, BLUE, GREEN, GREY = "#d55e00", "#0072b2", "#009e73", "#5f6b7a"
SERIES = {
    "generations": ("generations", VERMILLION),
    "background": ("training images, to each other", BLUE),
    "heldout": ("images never trained on", GREEN),
}
_STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
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
    "legend.fontsize": 9.5,
}
COLORS = (VERMILLION, BLUE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", GREY)
_MARKERS = "oDs^vPX*"
# Inches; a phone shows it at four fifths, where the text is still 11 px high.
_WIDTH = 4.6
_LABEL = 46  # characters of a line below an axis
_MAX_POINTS = 1500  # drawn of one group; the box is of all
_BINS = 40
_LOG_FROM = 4  # times the least loss, from which the axis is logarithmic
styled = matplotlib.style.context(["default", _STYLE])


class Panel(NamedTuple):
    """One score of several runs.

    Attributes:
      estimates: one a run, or None where it was not measured.
      is_share: whether the numbers are shares in [0, 1].
    """

    title: str
    estimates: Sequence[Estimate | None]
    is_share: bool = False


@styled
def to_png(figure: Figure) -> bytes:
    """Renders a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@styled
def plot_histogram(
    similarities: Mapping[str, Float[np.ndarray, " Q"]],
    embedder: str,
    threshold: float | None = None,
) -> Figure:
    """Draws the top-1 similarities of each set on the same bins, as shares of the set.

    Args:
      similarities: by set: `generations`, `background`, `heldout`; finite.
      threshold: from which a generation is called a copy, if there is such.
    """
    figure, (axes,) = new_figure(3.7)
    every = np.concatenate(
        [*similarities.values(), [] if threshold is None else [threshold]]
    )
    margin = 1e-6 + 0.01 * float(np.ptp(every))
    bins = np.linspace(every.min() - margin, every.max() + margin, _BINS + 1)
    for name, (label, color) in SERIES.items():
        if name not in similarities:
            continue
        values = similarities[name]
        shares = np.histogram(values, bins)[0] / len(values)
        axes.stairs(shares, bins, fill=True, color=color, alpha=0.22)
        label = f"{label} ({len(values):,})"
        axes.stairs(shares, bins, color=color, linewidth=1.6, label=label)
        axes.axvline(
            float(np.percentile(values, 95)), color=color, linestyle="--", linewidth=1.3
        )
    # An entry of the legend without data.
    axes.plot(
        [], [], color=GREY, linestyle="--", linewidth=1.3, label="95th percentile"
    )
    if threshold is not None:
        axes.axvline(
            threshold, color="#1b222b", linewidth=1.8, label="called a copy from here"
        )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _label_below(axes, f"similarity to the nearest training image ({embedder})")
    axes.set_ylabel("share of images")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6)
    return figure


@styled
def plot_split(
    groups: Mapping[str, Float[np.ndarray, " Q"]],
    means: Mapping[str, Estimate],
    baseline: float | None,
    embedder: str,
) -> Figure:
    """Draws the similarities of groups of generations: points, box, mean and interval.

    Args:
      groups: similarities by name, each with at least one.
      means: mean and interval by the same name, where known.
      baseline: mean similarity of training images to each other.
    """
    figure, (axes,) = new_figure(0.9 + 1.05 * len(groups))
    colors = (VERMILLION, BLUE, GREEN)
    for y, (name, values) in enumerate(groups.items()):
        rng = np.random.default_rng(0)
        shown = rng.permutation(values)[:_MAX_POINTS]
        axes.scatter(
            shown,
            y + 0.3 + rng.uniform(-0.13, 0.13, len(shown)),
            s=9,
            alpha=0.35,
            color=colors[y % 3],
            linewidths=0,
        )
        axes.boxplot(
            values,
            positions=[y],
            orientation="horizontal",
            widths=0.22,
            showfliers=False,
            medianprops={"color": GREY},
            boxprops={"color": GREY},
            whiskerprops={"color": GREY},
            capprops={"color": GREY},
        )
        if name in means:
            _interval(axes, means[name], y - 0.27, colors[y % 3])
    if baseline is not None:
        axes.axvline(baseline, color=GREY, linestyle="--", linewidth=1.3)
        axes.plot(
            [],
            [],
            color=GREY,
            linestyle="--",
            label="mean of training images, to each other",
        )
    axes.plot([], [], "D", color=GREY, markersize=5, label="mean and 95 % interval")
    axes.set_yticks(
        range(len(groups)), [f"{n}\n({len(v):,})" for n, v in groups.items()]
    )
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    _label_below(axes, f"similarity to the nearest training image ({embedder})")
    figure.legend(loc="outside upper left", handlelength=1.6)
    return figure


@styled
def plot_hits(hits: Mapping[str, Estimate]) -> Figure:
    """Draws shares of prompted images that came back, as bars with intervals."""
    figure, (axes,) = new_figure(0.9 + 0.62 * len(hits))
    colors = {"duplicated": VERMILLION, "not duplicated": BLUE}
    for y, (name, estimate) in enumerate(hits.items()):
        axes.barh(y, estimate.value, 0.56, color=colors.get(name, GREY), alpha=0.85)
        if estimate.has_interval:
            axes.errorbar(
                estimate.value,
                y,
                xerr=_error_bars(estimate),
                color="#1b222b",
                capsize=4,
                linewidth=1.3,
            )
        text = f"{format_number(100.0 * estimate.value)} %"
        axes.text(max(estimate.high, estimate.value) + 0.02, y, text, va="center")
    axes.set_yticks(range(len(hits)), list(hits))
    axes.set_ylim(len(hits) - 0.45, -0.55)
    axes.set_xlim(0, 1.17)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.grid(axis="y", visible=False)
    _label_below(axes, "generations nearest to the very image that prompted them")
    return figure


@styled
def plot_comparison(titles: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """Draws each score of the titled runs in a panel of its own."""
    rows = len(titles)
    wrapped = [textwrap.shorten(title, 30, placeholder="…") for title in titles]
    figure, every_axes = new_figure(len(panels) * (0.72 + 0.36 * rows), len(panels))
    for axes, panel in zip(every_axes, panels, strict=True):
        for y, estimate in enumerate(panel.estimates):
            if estimate is not None:
                _interval(axes, estimate, y, BLUE if y else VERMILLION)
        axes.set_title(panel.title)
        axes.set_yticks(range(rows), wrapped)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        if panel.is_share:
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        else:
            axes.margins(x=0.1)
    return figure


@styled
def plot_tradeoff(
    titles: Sequence[str],
    similarities: Sequence[Estimate | None],
    panels: Sequence[Panel],
    embedder: str,
) -> Figure:
    """Draws each run's similarity against its quality, with intervals both ways.

    Args:
      similarities: 95th percentile of each run.
      panels: what each run is traded off against, one panel a score.
    """
    figure, every_axes = new_figure(0.35 * len(titles) + 2.7 * len(panels), len(panels))
    for axes, panel in zip(every_axes, panels, strict=True):
        for i, title in enumerate(titles):
            x, y = similarities[i], panel.estimates[i]
            if x is None or y is None:
                continue
            axes.errorbar(
                x.value,
                y.value,
                xerr=_error_bars(x),
                yerr=_error_bars(y),
                fmt=_MARKERS[i % len(_MARKERS)],
                color=COLORS[i % len(COLORS)],
                markersize=8,
                linewidth=1.6,
                capsize=3,
                label=textwrap.shorten(title, 60, placeholder="…"),
            )
        axes.set_title(panel.title)
        axes.margins(0.12)
    _label_below(
        every_axes[-1], f"dataset similarity ({embedder}): lower = less copied"
    )
    entries = {
        label: handle
        for axes in every_axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries, loc="outside upper left")
    return figure


# Columns of the metrics, and what they are to a reader.
COPYING = {
    "online_dataset_similarity": "dataset similarity",
    "online_prompted_image_hits_duplicated": "duplicated images that come back",
    "online_prompted_image_hits_unduplicated": "other images that come back",
}


@styled
def plot_loss(losses: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Draws the loss of each run over steps, and a moving mean where it is long.

    Args:
      losses: titles of runs, and columns step and loss, finite, two rows or more.
    """
    figure, (axes,) = new_figure(3.4)
    styles = [(VERMILLION, "-"), (BLUE, "--"), (GREEN, "-."), (GREY, ":")]
    for i, (title, table) in enumerate(losses):
        color, line = styles[i % len(styles)]
        steps, loss = table["step"].to_numpy(), table["loss"]
        window = max(1, len(table) // 20)
        smooth = loss.rolling(window, min_periods=1, center=True).mean()
        if window > 1:
            axes.plot(steps, loss, color=color, alpha=0.3, linewidth=0.9)
        label = textwrap.shorten(title, 40, placeholder="…")
        axes.plot(steps, smooth, line, color=color, linewidth=1.8, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    every = np.concatenate([table["loss"] for _, table in losses])
    if every.min() > 0 and every.max() > _LOG_FROM * every.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(losses) > 1:
        axes.legend()
    return figure


@styled
def plot_copying(table: pd.DataFrame, background: float | None) -> Figure:
    """Draws how much a run copied at each step at which that was measured.

    Args:
      table: columns step, and some of `COPYING`.
      background: dataset similarity of training images to each other, or None.
    """
    figure, (axes,) = new_figure(3.4)
    styles = [(VERMILLION, "-o"), (BLUE, "--s"), (GREEN, "-.^")]
    for (name, label), (color, line) in zip(COPYING.items(), styles, strict=True):
        if name in table:
            axes.plot(table["step"], table[name], line, color=color, label=label)
    if background is not None:
        axes.axhline(
            background, color=GREY, linestyle=":", label="background similarity"
        )
    axes.set_xlabel("training step")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.03)
    axes.legend()
    return figure


def _label_below(axes: Axes, text: str) -> None:
    axes.set_xlabel(textwrap.fill(text, _LABEL))


def new_figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)
    return figure, list(axes[:, 0])


def _error_bars(estimate: Estimate) -> list[list[float]] | None:
    """Is the lengths below and above a value, as matplotlib wants them."""
    if not estimate.has_interval:
        return None
    value, low, high = estimate
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _interval(axes: Axes, estimate: Estimate, y: float, color: str) -> None:
    """Draws a diamond with its interval."""
    if estimate.has_interval:
        axes.plot(
            estimate[1:], [y, y], color=color, linewidth=2.2, solid_capstyle="butt"
        )
    axes.plot([estimate.value], [y], "D", color=color, markersize=6)
