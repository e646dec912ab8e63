"""The report stage: an evaluated run in; the page and what lies beside it out.

The page is one file that loads nothing: images, figures, style and script are inside,
every text from outside is escaped, and a policy names the hashes of its own style and
script, so that nothing else could run. It is whole without the script.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

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
from copymit.report.metrics_card import write_metrics_card
from copymit.report.pairing import compare_pairs
from copymit.report.pictures import DETAILS, Detail
from copymit.report.score_table import tabulate_scores
from copymit.report.verdict import (
    format_interval,
    format_number,
    format_value,
    make_headline,
    make_tiles,
    read_estimate,
)

_FOLDER = Path(__file__).parent
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
# Makes the pictures in such detail: cards, what to keep first comes first, and a strip.
Illustrate = Callable[[Detail], tuple[list[Card], Strip | None]]


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
        `generations.parquet` and `metrics_card.txt`; made if absent.
      compared: other runs to show beside it.
      gallery_size: number of most copied generations to show; a third of it for random
        and for the least copied ones.
      num_neighbours: training images beside each generation.
      max_bytes: of the page; to stay below, pictures shrink first and then the gallery.
      blurred: whether pictures start blurred, as disturbing or private ones should; a
        switch in the page changes it.
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

    def illustrate(detail: Detail) -> tuple[list[Card], Strip | None]:
        cards = make_cards(run, generations[0], choices, num_neighbours, detail)
        if not compared:
            return cards, None
        return cards, make_strip(runs, generations, gallery_size // 3, detail.large)

    page = _fit(illustrate, facts, max_bytes)
    write_generation_table(directory, tabulate_generations(run, generations[0]))
    (directory / "metrics_card.txt").write_bytes(_encode(metrics_card + "\n"))
    path = directory / "report.html"
    path.write_bytes(page)
    return path


def _fit(illustrate: Illustrate, facts: Mapping[str, Any], max_bytes: int) -> bytes:
    """Renders the page in the finest detail, and with the most cards, that fit.

    Raises:
      ValueError: if even the page without a gallery is too large.
    """
    for detail in DETAILS:
        cards, strip = illustrate(detail)
        page = _render(facts, cards, strip, detail, len(cards))
        if len(page) <= max_bytes:
            return page
    fits = _render(facts, cards, strip, detail, 0)
    if len(fits) > max_bytes:
        raise ValueError(
            f"max_bytes={max_bytes} is too small: the page has {len(fits)} bytes "
            f"without its gallery; give at least {len(fits)}"
        )
    fitting, too_many = 0, len(cards)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        page = _render(facts, cards, strip, detail, middle)
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
        "knows_prompted": any(g.prompted for g in generations[0]),
        "runs": runs,
        "comparison": compare_scores(runs, relations) if compared else [],
        "differences": differences,
        "pair_differences": pairs,
        "differing": differing_settings(runs) if compared else [],
        "doubts": list_doubts(runs) if compared else [],
        "detectors": tabulate_detectors(run.detection) if run.detection else [],
        "groups": tabulate_scores(run.scores),
        "settings": sorted((k, str(v)) for k, v in run.settings.items()),
        "alarms": [str(a) for a in run.scores.get("alarms") or ()],
        "warnings": [str(w) for w in run.scores.get("warnings") or ()],
        "version": copymit.__version__,
    }


def _render(
    facts: Mapping[str, Any],
    cards: Sequence[Card],
    strip: Strip | None,
    detail: Detail,
    count: int,
) -> bytes:
    """Renders the page with the first `count` of the cards."""
    shown = sorted(
        cards[:count], key=lambda c: (-c.generation.similarity, c.generation.id)
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "breakable": _breakable}
    style, script = (
        # Ours, not from outside: escaped they would not work.
        Markup((_FOLDER / name).read_text("utf-8"))
        for name in ("page.css", "page.js")
    )
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    template = environment.get_template("page.html.jinja")
    page = template.render(
        **facts,
        cards=shown,
        strip=strip,
        slider=_slider(shown),
        left_out=len(cards) - count,
        shrunk=detail is not DETAILS[0],
        detail=detail,
        style=style,
        script=script,
        policy=Markup(policy),
    )
    return _encode(page)


def _hash(source: str) -> str:
    """Is the name by which a content security policy allows an inline source."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _encode(text: str) -> bytes:
    """Encodes; file names may hold bytes that are no text (lone surrogates)."""
    return text.encode("utf-8", "backslashreplace")


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


def _breakable(name: str) -> Markup:
    """Is a dotted or underscored name that may continue on the next line."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", name))
