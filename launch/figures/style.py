"""What all panels of a figure share: colours, how trials are grouped, axes, legends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from configs.sweeps_types import Score
from launch.estimates import Estimate

# Okabe and Ito's palette: told apart with any kind of colour vision.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f6b7a")
MARKERS = "osD^vPX*"
GREY = "#5f6b7a"
INK = "#1b222b"
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ae",
    "axes.labelcolor": "#333b46",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": "#9aa3ae",
    "ytick.color": "#9aa3ae",
    "xtick.labelcolor": "#333b46",
    "ytick.labelcolor": "#333b46",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def groups(table: pd.DataFrame, label: str) -> list[tuple[str, pd.DataFrame]]:
    """Divides trials by a label, in the order of appearance; "" is one group."""
    if not label:
        return [("", table)]
    return [(str(k), rows) for k, rows in table.groupby(label, sort=False)]


def whiskers(found: Sequence[Estimate]) -> np.ndarray:
    """Returns (2, N) distances below and above; none where the spread is unknown."""
    means = np.array([e.mean for e in found])
    low = np.nan_to_num(means - np.array([e.low for e in found]))
    high = np.nan_to_num(np.array([e.high for e in found]) - means)
    return np.clip(np.stack([low, high]), 0, None)


def finish(axes: Axes, x_label: str, y: Score, title: str) -> None:
    """Labels the axes of a score over something, and adds the legend."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y.label)
    if y.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    add_legend(axes, title, 2)


def finish_lying(axes: Axes, x_label: str, x: Score, title: str) -> None:
    """Labels the axis of a score that runs from left to right, and adds the legend."""
    axes.set_xlabel(x_label)
    if x.percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    add_legend(axes, title, 3)


def add_legend(axes: Axes, title: str, columns: int) -> None:
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
