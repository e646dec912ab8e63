"""Points of generations become a picture."""

import io

import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib import image
from scipy import stats

from configs.sweeps_types import Clusters, Scatter, Score
from launch.estimates import estimate
from launch.figures.figure import draw

R = Score("r", ("complexity_entropy_pearson",))
SCATTER = Scatter("nearest_entropy", "entropy (bits)", R, series="data")


def make_sweep(num_seeds=3, count=40):
    """Two data sets, of which one copies its simple images; with its points."""
    rng = np.random.default_rng(0)
    trials, points = [], []
    for data, slope in (("faces", -0.1), ("rooms", 0.0)):
        for seed in range(num_seeds):
            x = rng.uniform(4, 8, count)
            y = 1 + slope * x + rng.normal(0, 0.05, count)
            labels = {"data": data, "seed": seed}
            r = stats.pearsonr(x, y).statistic
            trials.append({"complexity_entropy_pearson": r} | labels)
            part = pd.DataFrame({"nearest_entropy": x, "similarity": y})
            points.append(part.assign(**labels))
    return pd.DataFrame(trials), pd.concat(points, ignore_index=True)


def texts_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_scatter_has_every_generation_and_its_line_of_least_squares(figures):
    table, points = make_sweep()
    draw([SCATTER], table, points)
    (axes,) = figures[0].axes
    drawn = axes.collections[0].get_offsets()
    expected = points[["nearest_entropy", "similarity"]].to_numpy()
    np.testing.assert_array_equal(
        np.sort(np.asarray(drawn), axis=0), np.sort(expected, axis=0)
    )
    for line, (_, rows) in zip(axes.lines, points.groupby("data"), strict=True):
        x, y = line.get_data()
        fitted = stats.linregress(rows["nearest_entropy"], rows["similarity"])
        assert (x[0], x[1]) == (
            rows["nearest_entropy"].min(),
            rows["nearest_entropy"].max(),
        )
        np.testing.assert_allclose(np.diff(y) / np.diff(x), fitted.slope, rtol=1e-6)


def test_each_point_has_the_colour_of_its_series(figures):
    table, points = make_sweep()
    draw([SCATTER], table, points)
    (axes,) = figures[0].axes
    scatter = axes.collections[0]
    colors = {line.get_color(): line for line in axes.lines}
    assert len(colors) == 2
    series = dict(zip(points["nearest_entropy"], points["data"], strict=True))
    faces = matplotlib.colors.to_rgb(axes.lines[0].get_color())
    for (x, _), color in zip(
        scatter.get_offsets(), scatter.get_facecolors(), strict=True
    ):
        assert (tuple(color[:3]) == faces) == (series[x] == "faces")


def test_the_legend_has_the_correlation_over_seeds(figures):
    table, points = make_sweep()
    draw([SCATTER], table, points)
    found = estimate(table[table["data"] == "faces"], R)
    numbers = [f"{abs(value):.2f}" for value in found[:3]]
    first, second = texts_of(figures[0].axes[0])
    assert first == "faces: r = \u2212{} [\u2212{}, \u2212{}]".format(*numbers)
    assert second.startswith("rooms: r = ")


def test_one_seed_has_no_interval_and_no_correlation_no_number(figures):
    table, points = make_sweep(num_seeds=1)
    table.loc[table["data"] == "rooms", "complexity_entropy_pearson"] = np.nan
    points.loc[points["data"] == "rooms", "nearest_entropy"] = 5.0
    draw([SCATTER], table, points)
    first, second = texts_of(figures[0].axes[0])
    assert "[" not in first
    assert second == "rooms"
    assert len(figures[0].axes[0].lines[1].get_xdata()) == 0  # no slope either


def test_long_axes_are_short_to_read(figures):
    table, points = make_sweep()
    points["nearest_entropy"] *= 1e5
    draw([SCATTER], table, points)
    labels = [t.get_text() for t in figures[0].axes[0].get_xticklabels()]
    assert all(label.endswith("k") for label in labels)


def test_the_same_points_give_the_same_bytes_and_panels_without_any_are_left_out():
    table, points = make_sweep()
    drawn = draw([SCATTER], table, points)
    assert draw([SCATTER], table, points) == drawn
    lacking = SCATTER._replace(x="nearest_jpeg_bytes")
    assert draw([Clusters(), SCATTER, lacking], table, points) == drawn
    width = image.imread(io.BytesIO(drawn)).shape[1]
    unknown = points.assign(nearest_jpeg_bytes=np.nan)
    again = draw([SCATTER, lacking], table, unknown)
    assert image.imread(io.BytesIO(again)).shape[1] == width


def test_generations_outside_of_every_cluster_are_not_drawn(figures):
    table, points = make_sweep()
    points["image_similarity"] = points["caption_similarity"] = np.nan
    points.loc[:4, ["image_similarity", "caption_similarity"]] = 0.9
    draw([Clusters()], table, points)
    assert len(figures[0].axes[0].collections[0].get_offsets()) == 5
