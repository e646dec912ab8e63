"""Figures of detectors of memorised prompts: ROC curves, and which tokens matter."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from copymit.report.figures import COLORS, GREY, VERMILLION, new_figure, styled
from copymit.scores.detection import Roc

_LINES = ("-", "--", "-.", ":")
_MAX_TOKENS = 40


@styled
def plot_roc(curves: Mapping[str, Roc]) -> Figure:
    """Draws the ROC curve of every detector, with 1 % false positives and chance.

    Args:
      curves: by the detector's title, one or more.
    """
    figure, (axes,) = new_figure(4.6 + 0.2 * len(curves))
    for i, (title, roc) in enumerate(curves.items()):
        # Prompts of equal score are called together, so points are joined straight.
        axes.plot(
            roc.false_positive_rates,
            roc.true_positive_rates,
            _LINES[i // len(COLORS) % len(_LINES)],
            color=COLORS[i % len(COLORS)],
            linewidth=1.7,
            label=textwrap.shorten(title, 60, placeholder="…"),
        )
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
    axes.axvline(0.01, color=GREY, linestyle="--", linewidth=1, label="1 % called")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.set_xlabel("other prompts that are called memorised")
    axes.set_ylabel("memorised prompts found")
    figure.legend(loc="outside upper left", handlelength=2.2)
    return figure


@styled
def plot_tokens(tokens: Sequence[str], attribution: Float[np.ndarray, " L"]) -> Figure:
    """Draws how much each token of a prompt makes it memorised, as bars.

    Args:
      tokens: in order; the first 40 are drawn.
      attribution: of each, 0 or more.
    Raises:
      ValueError: if there are none, or their numbers differ.
    """
    if not len(tokens) or len(tokens) != len(attribution):
        raise ValueError(
            f"{len(tokens)} tokens and {len(attribution)} attributions: give one of "
            "each, and at least one"
        )
    shown = list(tokens)[:_MAX_TOKENS]
    figure, (axes,) = new_figure(0.8 + 0.2 * len(shown))
    axes.barh(range(len(shown)), attribution[: len(shown)], 0.7, color=VERMILLION)
    labels = [textwrap.shorten(token, 24, placeholder="…") for token in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("gradient of the text-conditional noise, norm")
    return figure
