import io

import numpy as np
import pytest
from PIL import Image

from copymit.report.detection_figures import plot_roc, plot_tokens
from copymit.report.figures import to_png
from copymit.scores.detection import compute_roc


def some_curves(count):
    rng = np.random.default_rng(0)
    memorised = np.arange(40) < 15
    return {
        f"detector {i}": compute_roc(rng.normal(size=40) + i * memorised, memorised)
        for i in range(count)
    }


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plot_roc(some_curves(9)),
        lambda: plot_tokens(["a", "$red$", "x" * 60], np.array([0.1, 2.0, 0.0])),
    ],
)
def test_a_figure_is_a_png_on_white_that_is_the_same_each_time(figure):
    data = to_png(figure())
    assert data == to_png(figure())
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (image[0] == 255).all()
    assert (image[-1] == 255).all()
    assert image.min() < 100  # something dark was drawn


def test_the_curves_are_those_that_were_given_each_in_a_style_of_its_own():
    curves = some_curves(9)
    (axes,) = plot_roc(curves).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    for name, roc in curves.items():
        np.testing.assert_array_equal(lines[name].get_xdata(), roc[0])
        np.testing.assert_array_equal(lines[name].get_ydata(), roc[1])
    styles = {(lines[n].get_color(), lines[n].get_linestyle()) for n in curves}
    assert len(styles) == 9


def test_many_tokens_are_cut():
    (axes,) = plot_tokens(["t"] * 70, np.ones(70)).axes
    assert len(axes.patches) == 40


def test_tokens_without_attributions_are_refused():
    with pytest.raises(ValueError, match="2 tokens and 1 attributions"):
        plot_tokens(["a", "b"], np.ones(1))
