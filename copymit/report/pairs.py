"""Pages of all pairs of a copy and its training image, for who looks through them.

A table of generations enters; pages leave, linked to each other and walked by the arrow
keys. Everything is there without their script. The pictures that lie beside them are the
score stage's.
"""

import pandas as pd
from etils import epath

from copymit.report.template import encode, render_page
from copymit.scores.grades import GRADES
from copymit.storage import write_whole

_PER_PAGE = 60
_PERHAPS = ("picture", "prompt", "prompted_reference", "tile_l2", "q")


def choose_pairs(generations: pd.DataFrame) -> pd.DataFrame:
    """Chooses the generations that agree with a training image, the surest first.

    Args:
      generations: columns generation, grade, similarity and whatever else is known.
    """
    rank = pd.Categorical(generations["grade"], GRADES, ordered=True)
    pairs = generations.assign(rank=rank)[generations["grade"] != "none"]
    order = ["rank", "similarity", "generation"]
    return pairs.sort_values(order, ascending=[True, False, True]).drop(columns="rank")


def write_pair_pages(
    folder: epath.Path, generations: pd.DataFrame, *, blurred: bool = False
) -> None:
    """Writes `page_001.html` and so on; none where nothing is a copy.

    Args:
      folder: that holds the pictures; made if absent.
      generations: as `choose_pairs`, and copy_of; perhaps `picture`, a file's name or
        None where it was not drawn, prompt, prompted_reference, tile_l2 and q.
      blurred: whether pictures start blurred; a switch in each page changes it.
    """
    table = choose_pairs(generations)
    table = table.assign(**{name: None for name in _PERHAPS if name not in table})
    pairs = table.astype(object).where(table.notna(), None).to_dict("records")
    if pairs:
        folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(pairs), _PER_PAGE)
    for number, start in enumerate(starts, 1):
        page = render_page(
            "pairs.html.jinja",
            "pairs.js",
            images="'self' file: data:",
            pairs=pairs[start : start + _PER_PAGE],
            first=start + 1,
            total=len(pairs),
            blurred=blurred,
            number=number,
            pages=len(starts),
        )
        write_whole(folder / page_name(number), encode(page))


def page_name(number: int) -> str:
    """Names a page, from 1 on."""
    return f"page_{number:03d}.html"
