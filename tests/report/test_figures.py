import io
import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from copymit.report.figures import (
    DPI,
    Panel,
    plot_comparison,
    plot_copying,
    plot_histogram,
    plot_hits,
    plot_loss,
    plot_split,
    plot_tradeoff,
    to_png,
)
from copymit.report.verdict import Estimate


def some_similarities(count, seed):
    return np.random.default_rng(seed).uniform(0.2, 0.9, count)


def every_figure():
    groups = {"duplicated": some_similarities(30, 0), "others": some_similarities(9, 1)}
    steps = np.arange(1, 101)
    table = pd.DataFrame({"step": steps, "loss": 1.0 / steps})
    share, point = Estimate(0.5, 0.4, 0.6), Estimate(3.0, 3.0, 3.0)
    return {
        "histogram": plot_histogram(
            {"generations": groups["duplicated"], "background": groups["others"]}, "net"
        ),
        "split": plot_split(groups, {"others": share}, 0.4, "net"),
        "hits": plot_hits({"all": share, "duplicated": Estimate(1.0, 1.0, 1.0)}),
        "comparison": plot_comparison(
            ["one", "two"],
            [
                Panel("hits", [share, None], is_share=True),
                Panel("loss", [point, point]),
            ],
        ),
        "loss": plot_loss([("one", table), ("two", table)]),
        "copying": plot_copying(
            pd.DataFrame(
                {
                    "step": [5, 10],
                    "online_dataset_similarity": [0.4, 0.9],
                    "online_prompted_image_hits_duplicated": [0.0, 1.0],
                }
            ),
            0.6,
        ),
        "tradeoff": plot_tradeoff(
            ["one", "two"],
            [share, Estimate(0.7, 0.6, 0.8)],
            [Panel("FID", [point, Estimate(5.0, 4.0, 6.0)])],
            "net",
        ),
    }


@pytest.mark.parametrize(
    "name", ["histogram", "split", "hits", "comparison", "loss", "copying", "tradeoff"]
)
def test_every_figure_is_a_png_on_white_that_is_the_same_each_time(name):
    data = to_png(every_figure()[name])
    assert data == to_png(every_figure()[name])
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (image[0] == 255).all()
    assert (image[-1] == 255).all()
    assert image.min() < 100  # something dark was drawn


def test_a_png_carries_its_resolution_and_no_software():
    data = to_png(every_figure()["hits"])
    start = data.index(b"pHYs") + 4
    per_metre = struct.unpack(">I", data[start : start + 4])[0]
    assert per_metre * 0.0254 == pytest.approx(DPI, abs=0.1)
    assert b"Software" not in data


def test_both_histograms_have_the_same_bins_and_each_sums_to_one():
    wide, narrow = some_similarities(500, 0), np.full(20, 0.5)
    figure = plot_histogram({"generations": wide, "background": narrow}, "net")
    curves = [p.get_data() for p in figure.axes[0].patches]
    edges = [curve.edges for curve in curves]
    assert all((e == edges[0]).all() for e in edges)
    for curve in curves:
        # Shares add up exactly but for rounding.
        assert curve.values.sum() == pytest.approx(1, abs=1e-12)


def test_a_set_without_spread_can_be_drawn():
    assert to_png(plot_histogram({"generations": np.ones(3)}, "net"))


def test_a_bar_is_as_long_as_its_share():
    figure = plot_hits({"all": Estimate(0.25, 0.1, 0.4)})
    assert figure.axes[0].patches[0].get_width() == 0.25
    assert [t.get_text() for t in figure.axes[0].texts] == ["25.0 %"]


def test_a_score_that_a_run_lacks_leaves_its_row_empty():
    estimate = Estimate(0.5, 0.4, 0.6)
    full = plot_comparison(["a", "b"], [Panel("x", [estimate, estimate])])
    half = plot_comparison(["a", "b"], [Panel("x", [None, estimate])])
    assert len(full.axes[0].lines) == 2 * len(half.axes[0].lines) > 0
    assert [t.get_text() for t in half.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_title_with_dollar_signs_is_not_taken_for_mathematics():
    estimate = Estimate(0.5, 0.4, 0.6)
    assert to_png(plot_comparison([r"$\frac{$"], [Panel("x", [estimate])]))


def test_a_falling_loss_is_drawn_on_a_logarithmic_axis_and_a_flat_one_is_not():
    steps = [1, 2, 3]
    falling = pd.DataFrame({"step": steps, "loss": [1.0, 0.1, 0.01]})
    flat = pd.DataFrame({"step": steps, "loss": [1.0, 0.9, 0.8]})
    negative = pd.DataFrame({"step": steps, "loss": [1.0, 0.0, -1.0]})
    scales = [
        plot_loss([("run", table)]).axes[0].get_yscale()
        for table in (falling, flat, negative)
    ]
    assert scales == ["log", "linear", "linear"]


def test_the_callers_matplotlib_settings_neither_matter_nor_change():
    import matplotlib

    before = to_png(every_figure()["loss"])
    with matplotlib.rc_context({"font.size": 30, "figure.facecolor": "black"}):
        assert to_png(every_figure()["loss"]) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_a_run_lies_at_its_similarity_and_quality_and_one_without_is_left_out():
    similarities = [Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.6, 0.8)]
    panels = [
        Panel("FID", [Estimate(3.0, 3.0, 3.0), Estimate(5.0, 4.0, 6.0)]),
        Panel("CLIP", [None, Estimate(0.3, 0.2, 0.4)]),
    ]
    first, second = plot_tradeoff(["one", "two"], similarities, panels, "net").axes
    points = [c[0].get_xydata().tolist() for c in first.containers]
    assert points == [[[0.5, 3.0]], [[0.7, 5.0]]]
    assert [c[0].get_xydata().tolist() for c in second.containers] == [[[0.7, 0.3]]]


def test_copying_is_drawn_against_steps_with_its_background():
    figure = every_figure()["copying"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {
        "dataset similarity",
        "duplicated images that come back",
        "background similarity",
    }
    np.testing.assert_allclose(lines["dataset similarity"].get_xydata()[:, 0], [5, 10])
    assert set(lines["background similarity"].get_ydata()) == {0.6}
