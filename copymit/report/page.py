"""The report stage: an evaluated run in; the page and what lies beside it out.

The page is one file that loads nothing: images, figures, style and script are inside,
every text from outside is escaped, and a policy names the hashes of its own style and
script, so that nothing else could run. It is whole without the script.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

import copymit
from copymit.report.comparison import (
    Strip,
    check_same_protocol,
    compare_scores,
    describe_difference,
    differing_settings,
    list_doubts,
    make_strip,
)
from copymit.report.detection import tabulate_detectors
from copymit.report.evaluated_run import EvaluatedRun, Generation, list_generations
from copymit.report.gallery import REASONS, Card, choose_generations, make_cards
from copymit.report.generation_table import (
    tabulate_generations,
    write_generation_table,
)
from copymit.report.illustrations import draw_figures, write_figures
from copymit.report.kept_pairs import write_kept_pairs
from copymit.report.metrics_card import write_metrics_card
from copymit.report.pairing import compare_pairs
from copymit.report.pairs import write_pair_pages
from copymit.report.pictures import DETAILS, Detail
from copymit.report.returned import Returned, list_returned
from copymit.report.score_table import tabulate_scores
from copymit.report.template import encode, render_page
from copymit.report.verdict import (
    format_interval,
    format_value,
    make_headline,
    make_tiles,
    read_estimate,
)
from copymit.scores.detection import COMPARISONS, DETECTOR_SCORES
from copymit.scores.grades import GRADES
from copymit.storage import write_whole

_SETS = {
    "generations": "",
    "training images, to each other": "background_",
    "images never trained on": "heldout_",
}
_STATISTICS = {
    "mean": "similarity_mean",
    "75th percentile": "similarity_p75",
    "90th percentile": "similarity_p90",
    "95th percentile": "similarity_p95",
    "share above 0.5": "similarity_above_0.5",
}


class Illustrated(NamedTuple):
    """The pictures of a page; of cards and images what to keep first comes first."""

    cards: Sequence[Card]
    returned: Sequence[Returned]
    strip: Strip | None

    def first(self, share: float) -> "Illustrated":
        """Keeps a share of the cards and of the images that came back."""
        cards, returned = self.cards, self.returned
        return self._replace(
            cards=cards[: round(share * len(cards))],
            returned=returned[: round(share * len(returned))],
        )


def write_report(
    directory: epath.Path,
    run: EvaluatedRun,
    compared: Sequence[EvaluatedRun] = (),
    *,
    gallery_size: int = 24,
    num_neighbours: int = 4,
    max_bytes: int = 16_000_000,
    blurred: bool = False,
) -> epath.Path:
    """Writes the page of one run, and its numbers and figures as files of their own.

    What was not measured is left out. The same input gives the same bytes.

    Args:
      directory: receives `report.html`, `figures/*.png`, `generations.csv`,
        `generations.parquet`, `metrics_card.txt`, `pairs/*.jpg` and
        `copies/page_*.html`, beside the pictures of copies; made if absent.
      compared: other runs to show beside it.
      gallery_size: number of copies and most similar generations, of training images that
        came back, and of pairs; a third of it for random and for the least similar ones.
      num_neighbours: training images beside each generation.
      max_bytes: of the page; to stay below, pictures shrink first and then the gallery.
      blurred: whether pictures start blurred, as disturbing or private ones should; a
        switch in each page changes it.
    Returns:
      The path of the page.
    Raises:
      ValueError: for a negative size or count, a page that cannot be made small enough,
        runs of different embedders or protocols, tables without their columns, matches
        that are empty or not finite, or images that are not uint8 RGB.
    """
    if gallery_size < 0:
        raise ValueError(f"gallery_size is {gallery_size}; give 0 or more")
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours is {num_neighbours}; give 1 or more")
    directory = epath.Path(directory)
    runs = [run, *compared]
    check_same_protocol(runs)
    generations = [list_generations(r) for r in runs]
    drawn = draw_figures(runs, generations[0])
    metrics_card = write_metrics_card(run)
    choices = choose_generations(generations[0], gallery_size)
    facts = _facts(runs, generations) | {
        "figures": write_figures(directory / "figures", drawn),
        "metrics_card": metrics_card,
        "blurred": blurred,
        "max_megabytes": f"{max_bytes / 1e6:g}",
    }

    def illustrate(detail: Detail) -> Illustrated:
        return Illustrated(
            make_cards(run, generations[0], choices, num_neighbours, detail),
            list_returned(run, generations[0], gallery_size, detail),
            make_strip(runs, generations, gallery_size // 3, detail.large)
            if compared
            else None,
        )

    page = _fit(illustrate, facts, max_bytes)
    pairs = write_kept_pairs(directory, run, generations[0], gallery_size)
    table = tabulate_generations(run, generations[0], pairs)
    write_generation_table(directory, table)
    if "grade" in table:
        write_pair_pages(directory / "copies", table, blurred=blurred)
    write_whole(directory / "metrics_card.txt", encode(metrics_card + "\n"))
    path = directory / "report.html"
    write_whole(path, page)
    return path


def _fit(
    illustrate: Callable[[Detail], Illustrated],
    facts: Mapping[str, Any],
    max_bytes: int,
) -> bytes:
    """Renders the page in the finest detail, and with the most pictures, that fit.

    Raises:
      ValueError: if even the page without a gallery is too large.
    """
    for detail in DETAILS:
        pictures = illustrate(detail)
        page = _render(facts, pictures, pictures, detail)
        if len(page) <= max_bytes:
            return page
    fits = _render(facts, pictures.first(0), pictures, detail)
    if len(fits) > max_bytes:
        raise ValueError(
            f"max_bytes={max_bytes} is too small: the page has {len(fits)} bytes "
            f"without its gallery; give at least {len(fits)}"
        )
    total = len(pictures.cards)
    fitting, too_many = 0, total
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        page = _render(facts, pictures.first(middle / total), pictures, detail)
        if len(page) <= max_bytes:
            fits, fitting = page, middle
        else:
            too_many = middle
    return fits


def _facts(
    runs: Sequence[EvaluatedRun], generations: Sequence[Sequence[Generation]]
) -> dict[str, Any]:
    """Is what the template needs to know besides pictures."""
    run, *compared = runs
    pairs = compare_pairs(runs, generations)
    relations = [found.relations for found in pairs]
    differences = [
        describe_difference(run.scores, other.scores, known)
        for other, known in zip(compared, relations, strict=True)
    ]
    return {
        "run": run,
        "headline": make_headline(run.scores),
        "tiles": make_tiles(run.scores),
        "distributions": _distributions(run.scores),
        "reasons": REASONS,
        "knows_duplication": run.duplication is not None,
        "knows_grades": any(g.grade for g in generations[0]),
        "grades": GRADES,
        "num_pairs": sum(bool(g.copy_of) for g in generations[0]),
        "knows_prompted": any(g.prompted for g in generations[0]),
        "runs": runs,
        "comparison": compare_scores(runs, relations) if compared else [],
        "differences": differences,
        "pair_differences": pairs,
        "differing": differing_settings(runs) if compared else [],
        "doubts": list_doubts(runs) if compared else [],
        "comparisons": COMPARISONS,
        "detector_scores": DETECTOR_SCORES,
        "detectors": tabulate_detectors(run.detection) if run.detection else [],
        "groups": tabulate_scores(run.scores),
        "settings": sorted((k, str(v)) for k, v in run.settings.items()),
        "alarms": [str(a) for a in run.scores.get("alarms") or ()],
        "warnings": [str(w) for w in run.scores.get("warnings") or ()],
        "version": copymit.__version__,
    }


def _render(
    facts: Mapping[str, Any], part: Illustrated, whole: Illustrated, detail: Detail
) -> bytes:
    """Renders the page with a part of its pictures."""
    shown = sorted(
        part.cards,
        key=lambda c: (c.generation.rank, -c.generation.similarity, c.generation.id),
    )
    page = render_page(
        "page.html.jinja",
        "page.js",
        **facts,
        cards=shown,
        returned=part.returned,
        strip=part.strip,
        slider=_slider(shown),
        left_out=len(whole.cards) - len(shown),
        shrunk=detail is not DETAILS[0],
        detail=detail,
    )
    return encode(page)


def _slider(cards: Sequence[Card]) -> tuple[float, float]:
    """Is the range of the least similarity to show, in whole hundredths."""
    similarities = [card.generation.similarity for card in cards] or [0.0]
    low = math.floor(100 * min(similarities)) / 100
    return low, max(low + 0.01, math.floor(100 * max(similarities)) / 100)


def _distributions(
    scores: Mapping[str, Any],
) -> list[tuple[str, dict[str, tuple[str, str] | None]]]:
    """Is, by set of images, each statistic of similarity with its interval."""
    table = []
    for name, prefix in _SETS.items():
        cells: dict[str, tuple[str, str] | None] = {}
        for statistic, key in _STATISTICS.items():
            found = read_estimate(scores, prefix + key)
            cells[statistic] = found and (
                format_value(key, found.value),
                format_interval(key, found),
            )
        if any(cells.values()):
            table.append((name, cells))
    return table
