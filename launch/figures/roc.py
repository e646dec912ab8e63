"""How many memorised prompts detectors find, over how many others they call memorised."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from configs.sweeps_types import Roc
from copymit.scores.detection import compute_roc
from launch.figures.style import COLORS, GREY, add_legend, groups

_LINES = ("-", "--", ":")
# Few may be called memorised that are not: a logarithmic axis shows what is found there.
_RATES = np.geomspace(1e-3, 1, 400)


def draw_roc(axes: Axes, panel: Roc, table: pd.DataFrame, points: pd.DataFrame) -> None:
    """Draws a line for each detector: the mean of its seeds' ROC curves.

    Sources: Fawcett 2006, "An introduction to ROC analysis" (vertical averaging); Carlini
    et al. 2022, "Membership inference attacks from first principles" (the axis).
    """
    del table
    for number, (name, prompts) in enumerate(
        groups(detected(points, panel), panel.series)
    ):
        curves = [_true_positive_rates(of) for _, of in groups(prompts, "seed")]
        known = [curve for curve in curves if curve is not None]
        if known:
            axes.plot(
                _RATES,
                np.mean(known, axis=0),
                _LINES[number // len(COLORS) % len(_LINES)],
                color=COLORS[number % len(COLORS)],
                linewidth=1.6,
                label=name,
            )
    axes.plot(_RATES, _RATES, color=GREY, linestyle=":", label="chance")
    axes.axvline(0.01, color=GREY, linestyle="--", linewidth=1, label="1 % called")
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g} %")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_xlabel("captions never trained on that are called memorised")
    axes.set_ylabel("memorised prompts found")
    add_legend(axes, ": ".join(panel.only), 2)


def detected(points: pd.DataFrame, panel: Roc) -> pd.DataFrame:
    """Keeps memorised prompts and those never trained on, of the trials that are drawn."""
    label, value = panel.only
    if not {label, "detected"} <= set(points):
        return points.iloc[:0]
    compared = points["memorised"].eq(other=True) | points["kind"].eq("unseen")
    return points[compared & points[label].eq(value)]


def _true_positive_rates(prompts: pd.DataFrame) -> np.ndarray | None:
    """Is the share found at each of the rates; None where all are of one kind."""
    memorised = prompts["memorised"].to_numpy(bool)
    if memorised.all() or not memorised.any():
        return None
    roc = compute_roc(prompts["detected"].to_numpy(float), memorised)
    return np.interp(_RATES, roc.false_positive_rates, roc.true_positive_rates)
