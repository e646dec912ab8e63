"""Pages of all pairs of a copy and its training image, for who looks through them.

Rows with the names of pictures that lie beside the pages enter; pages leave, linked to
each other and walked by the arrow keys. Everything is there without their script.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from copymit.report.template import encode, render_page
from copymit.storage import write_whole

_PER_PAGE = 60


def write_pair_pages(folder: epath.Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Writes `page_001.html` and so on.

    Args:
      folder: that holds the pictures.
      pairs: generation, copy_of, grade and similarity of each, in their order; `picture`,
        a file's name or None where it was not drawn; perhaps prompt, tile_l2, p and q.
    """
    starts = range(0, len(pairs), _PER_PAGE)
    for number, start in enumerate(starts, 1):
        page = render_page(
            "pairs.html.jinja",
            "pairs.js",
            images="'self' file:",
            pairs=pairs[start : start + _PER_PAGE],
            first=start + 1,
            total=len(pairs),
            number=number,
            pages=len(starts),
        )
        write_whole(folder / page_name(number), encode(page))


def page_name(number: int) -> str:
    """Names a page, from 1 on."""
    return f"page_{number:03d}.html"
