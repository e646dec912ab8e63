"""ROC curves of detectors: the mean of the seeds', against captions never trained on."""

import numpy as np
import pandas as pd
import pytest

from configs.sweeps_types import Roc
from launch.figures.figure import draw

PANEL = Roc("detector", only=("encoder", "trained"))
TABLE = pd.DataFrame({"detector": ["sure", "blind"], "encoder": "trained"})


def make_prompts(detector, seed, detected, **changes):
    """Two memorised prompts, two others and four unseen ones, by what is said of each."""
    kinds = 4 * ["prompted"] + 4 * ["unseen"]
    table = {"kind": kinds, "memorised": [True, True, *6 * [False]]}
    labels = {"detector": detector, "encoder": "trained", "seed": seed, **changes}
    return pd.DataFrame(table | {"detected": detected}).assign(**labels)


def lines_of(figures):
    (axes,) = figures[0].axes
    return {line.get_label(): np.stack(line.get_data()) for line in axes.lines}


def test_curves_are_means_over_seeds_and_other_training_prompts_do_not_count(figures):
    points = pd.concat(
        [
            # Other training prompts are called before all: they are not compared with.
            make_prompts("sure", 0, [3, 3, 9, 9, 0, 0, 0, 0]),
            make_prompts("sure", 1, [3, 1, 9, 9, 2, 0, 0, 0]),
            make_prompts("blind", 0, 8 * [1]),
            make_prompts("other", 0, 8 * [1], encoder="frozen"),
        ]
    )
    draw([PANEL], TABLE, points)
    lines = lines_of(figures)
    assert set(lines) == {"sure", "blind", "chance", "1 % called"}
    rates, found = lines["sure"]
    assert found[0] == pytest.approx((1 + 0.5) / 2)
    assert found[rates > 0.26].min() == 1
    np.testing.assert_allclose(*lines["blind"])  # by chance
    np.testing.assert_allclose(*lines["chance"])


def test_where_nothing_is_memorised_there_is_no_panel(figures):
    points = make_prompts("sure", 0, range(8)).assign(memorised=False)
    for nothing in (points, pd.DataFrame()):
        draw([PANEL], TABLE, nothing)
    assert [figure.axes for figure in figures] == [[], []]
