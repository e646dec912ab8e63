"""Bars lie, from the top, and rows of panels are as wide as they need."""

import pandas as pd
import pytest

from configs.sweeps_types import Bars, Curves, Score
from launch.figures.figure import draw

AUC = Score("AUC", ("auc",))
PANEL = Bars("detector", AUC, "detector", "encoder", chance=0.5)


def make_table(names):
    return pd.DataFrame(
        {"detector": name, "encoder": encoder, "seed": seed, "auc": 0.6 + 0.1 * i}
        for i, name in enumerate(names)
        for encoder in ("frozen", "trained")
        for seed in range(3)
    )


def test_bars_have_their_scores_along_x_from_the_top(figures):
    names = ("the norm of the first step", "the norm of all of the steps")
    table = make_table(names)
    draw([PANEL], table, pd.DataFrame())
    (axes,) = figures[0].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(names)
    assert axes.get_xlabel() == "AUC"
    assert axes.yaxis_inverted()
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([0.6, 0.7, 0.6, 0.7])
    chance = [line for line in axes.lines if line.get_label() == "chance"]
    assert [line.get_xdata()[0] for line in chance] == [0.5]


def test_panels_that_do_not_fit_go_below(figures):
    table = make_table(("the norm of the first step", "the norm of all of the steps"))
    draw([PANEL] * 4, table, pd.DataFrame())
    tops = [round(axes.get_position().y0, 2) for axes in figures[0].axes]
    assert tops[0] == tops[1] > tops[2] == tops[3]


def test_rows_of_panels_are_of_about_one_length(figures):
    curves = Curves("factor", AUC, "factor")
    table = pd.DataFrame({"factor": [1, 10], "seed": 0, "auc": [0.5, 0.6]})
    draw([curves] * 5, table, pd.DataFrame())
    tops = [round(axes.get_position().y0, 2) for axes in figures[0].axes]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == [3, 2]
