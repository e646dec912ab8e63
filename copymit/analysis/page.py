"""The page of an analysis: findings in; `analysis.html` and its figures out.

As the report's, the page is one file that loads nothing: images and style are inside,
every text from outside is escaped, and a policy allows no script at all.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from etils import epath
from jaxtyping import Float
from markupsafe import Markup

import copymit.report
from copymit.analysis.clusters import Cluster, caption_relation
from copymit.analysis.figures import SHARED, Axis, plot_clusters, points_of
from copymit.report.figures import plot_histogram
from copymit.report.gallery import shorten
from copymit.report.illustrations import EmbeddedFigure, write_figures
from copymit.report.pictures import Limit, Picture, picture_maker
from copymit.report.verdict import format_number
from copymit.storage import write_whole

_FOLDER = Path(__file__).parent
_REPORT = Path(copymit.report.__file__).parent
_THUMBNAIL = Limit(96, 3_072)
_PICTURES = 6  # of a cluster in the table
_PICTURES_BESIDE = 4  # of a cluster that is pointed at
_CAPTIONS = 3  # different ones of a cluster
_MAX_POINTS = 1500  # in the page's own plot
_MAX_ILLUSTRATED = 200  # points with pictures


class Findings(NamedTuple):
    """What the page shows.

    Attributes:
      counts: what `analysis.json` holds.
      table: of examples, which the rows of clusters mean.
      nearest: cosine of each different image to its nearest other.
    """

    counts: Mapping[str, Any]
    clusters: Sequence[Cluster]
    table: pd.DataFrame
    nearest: Float[np.ndarray, " U"]


class Member(NamedTuple):
    """An example in the page; `kept` stands for its cluster."""

    id: str
    picture: Picture
    kept: bool


class Shown(NamedTuple):
    """A cluster in the page.

    Attributes:
      anchor: where its row in the table is.
      captions: different ones, each with how often it occurs.
      more_members, more_captions: that are not shown.
      relation: of its captions, in words.
    """

    cluster: Cluster
    anchor: str
    members: list[Member]
    more_members: int
    captions: list[tuple[str, int]]
    more_captions: int
    relation: str


class Point(NamedTuple):
    """A cluster in the plot: place in [0, 1] from the lower left, and pictures if any."""

    x: float
    y: float
    radius: float
    shared: str
    shown: Shown


def write_page(
    out: epath.Path,
    findings: Findings,
    read: Callable[[int], np.ndarray],
    gallery_size: int,
) -> None:
    """Writes the page, and `clusters.png` and `nearest.png` in `figures`.

    Args:
      read: row of the table -> image.
      gallery_size: clusters of each kind in the tables, the largest ones.
    """
    counts, clusters = findings.counts, findings.clusters
    threshold = counts["caption_threshold"]
    points = points_of(clusters, threshold)
    drawn = {
        "clusters": (
            plot_clusters(points, counts["image_threshold"], threshold),
            "Clusters by similarity of their images and of their captions.",
        )
    }
    if len(findings.nearest):
        name = str(counts["protocol"]["images"]).partition(",")[0]
        drawn["nearest"] = (
            plot_histogram({"background": findings.nearest}, name),
            "Histogram of the similarity of each image to its nearest other.",
        )
    figures = write_figures(out / "figures", drawn)
    make = picture_maker(lambda row: read(int(row)), _THUMBNAIL)
    shown = {
        kind: [
            _show(cluster, findings, make, _PICTURES, anchored=True)
            for cluster in [c for c in clusters if c.kind == kind][:gallery_size]
        ]
        for kind in ("image", "caption")
    }
    anchors = {s.anchor for part in shown.values() for s in part}
    placed, axes = _place(points, findings, make, anchors)
    page = _render(findings, shown, placed, axes, figures)
    write_whole(out / "analysis.html", page.encode("utf-8", "backslashreplace"))


def _show(
    cluster: Cluster,
    findings: Findings,
    make: Callable[[str], Picture],
    num_pictures: int,
    *,
    anchored: bool,
) -> Shown:
    """Prepares a cluster, the example that is kept first."""
    table = findings.table
    others = cluster.rows[cluster.rows != cluster.kept]
    rows = [cluster.kept, *others[: max(0, num_pictures - 1)]][:num_pictures]
    ids, texts = table["example_id"], table["caption"]
    captions = texts.iloc[cluster.rows].value_counts()
    return Shown(
        cluster,
        _anchor(cluster) if anchored else "",
        [Member(ids[row], make(str(row)), row == cluster.kept) for row in rows],
        len(cluster.rows) - len(rows),
        [(shorten(t), int(n)) for t, n in captions.head(_CAPTIONS).items()],
        max(0, len(captions) - _CAPTIONS),
        caption_relation(cluster, findings.counts["caption_threshold"]),
    )


def _anchor(cluster: Cluster) -> str:
    return f"{cluster.kind}-{cluster.number}"


def _place(
    points: Sequence[tuple[str, Cluster]],
    findings: Findings,
    make: Callable[[str], Picture],
    anchors: set[str],
) -> tuple[list[Point], tuple[Axis, Axis]]:
    """Places the largest clusters in the plot, large ones below small ones."""
    x_axis = Axis([c.image_similarity for _, c in points])
    y_axis = Axis([c.caption_similarity for _, c in points])
    order = sorted(points, key=lambda point: -len(point[1].rows))[:_MAX_POINTS]
    placed = []
    for rank, (shared, cluster) in enumerate(order):
        count = _PICTURES_BESIDE if rank < _MAX_ILLUSTRATED else 0
        anchored = _anchor(cluster) in anchors
        placed.append(
            Point(
                x_axis.place(cluster.image_similarity),
                y_axis.place(cluster.caption_similarity),
                min(16.0, 3.2 * len(cluster.rows) ** 0.4),
                shared,
                _show(cluster, findings, make, count, anchored=anchored),
            )
        )
    return placed, (x_axis, y_axis)


def _render(
    findings: Findings,
    shown: Mapping[str, Sequence[Shown]],
    points: Sequence[Point],
    axes: tuple[Axis, Axis],
    figures: Mapping[str, EmbeddedFigure],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_FOLDER, _REPORT]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "cosine": "{:.3f}".format}
    style = "".join(
        path.read_text("utf-8")
        for path in (_REPORT / "page.css", _FOLDER / "analysis.css")
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'sha256-{digest}'"
    )
    totals = dict.fromkeys(shown, 0)
    for cluster in findings.clusters:
        totals[cluster.kind] += 1
    return environment.get_template("analysis.html.jinja").render(
        counts=findings.counts,
        shown=shown,
        totals=totals,
        points=points,
        axes=axes,
        shared=SHARED,
        figures=figures,
        # Ours, not from outside: escaped they would not work.
        style=Markup(style),
        policy=Markup(policy),
    )
