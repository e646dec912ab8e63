"""The figure of clusters: numbers in, a matplotlib figure out."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from copymit.analysis.clusters import Cluster, caption_relation
from copymit.report.figures import BLUE, GREEN, VERMILLION

# What a cluster shares -> how it is called and drawn.
SHARED = {
    "both": ("image and caption", VERMILLION, "o"),
    "image": ("image, captions differ", BLUE, "s"),
    "caption": ("caption, images differ", GREEN, "^"),
}


class Axis:
    """A range of similarity that is drawn, from a round number to 1."""

    def __init__(self, values: Sequence[float]):
        self.low = min(0.9, np.floor(10 * min(values, default=0.9) - 0.2) / 10)
        step = 0.1 if self.low >= 0.5 else 0.2
        count = int((1 - self.low) / step + 1e-6)
        self.ticks = [float(np.round(1 - i * step, 1)) for i in range(count, -1, -1)]

    def place(self, value: float) -> float:
        """Is where in the range a value lies: 0 at its start, 1 at its end."""
        return float((value - self.low) / (1 - self.low))


def points_of(
    clusters: Sequence[Cluster], caption_threshold: float
) -> list[tuple[str, Cluster]]:
    """Lists what to draw with what is shared; a cluster of both kinds is one point."""
    images = [c for c in clusters if c.kind == "image"]
    known = {c.rows.tobytes() for c in images}
    shared = [
        "image" if caption_relation(c, caption_threshold) == "different" else "both"
        for c in images
    ]
    points = list(zip(shared, images, strict=True))
    return points + [
        ("caption", c)
        for c in clusters
        if c.kind == "caption" and c.rows.tobytes() not in known
    ]


def plot_clusters(
    points: Sequence[tuple[str, Cluster]],
    image_threshold: float,
    caption_threshold: float,
) -> Figure:
    """Draws each cluster at its mean similarity of images and of captions.

    Source: Somepalli et al., Understanding and Mitigating Copying in Diffusion Models,
      2023, Figure 2, which draws clusters of LAION images that a model reproduces.
    """
    figure = Figure(figsize=(5.7, 4.6), layout="constrained")
    axes = figure.subplots()
    for key, (label, color, marker) in SHARED.items():
        drawn = [cluster for shared, cluster in points if shared == key]
        axes.scatter(
            [c.image_similarity for c in drawn],
            [c.caption_similarity for c in drawn],
            [18.0 * len(c.rows) ** 0.5 for c in drawn],
            color=color,
            marker=marker,
            alpha=0.6,
            linewidths=0,
            label=f"{label} ({len(drawn):,})",
        )
    axes.axvline(image_threshold, color="#9aa3ae", linestyle=":", zorder=0)
    axes.axhline(caption_threshold, color="#9aa3ae", linestyle=":", zorder=0)
    axes.set_xlim(Axis([c.image_similarity for _, c in points]).low, 1.02)
    axes.set_ylim(Axis([c.caption_similarity for _, c in points]).low, 1.03)
    axes.set_xlabel("mean similarity of images")
    axes.set_ylabel("mean similarity of captions")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=9.5)
    return figure
