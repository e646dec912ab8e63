import re

import pandas as pd
from etils import epath

from copymit.report.pairs import page_name, write_pair_pages

HOSTILE = '"><script>alert(1)</script>'


def pair(number, **changes):
    return {
        "picture": f"{number:04d}.png",
        "generation": f"g{number}",
        "copy_of": f"r{number}",
        "grade": "exact",
        "similarity": 0.9 - number / 1000,
        "prompt": None,
        "tile_l2": None,
        "q": None,
        **changes,
    }


def write(tmp_path, pairs, **options):
    write_pair_pages(epath.Path(tmp_path), pd.DataFrame(pairs), **options)
    return [path.read_text() for path in sorted(tmp_path.glob("page_*.html"))]


def test_every_pair_is_on_exactly_one_page_in_order(tmp_path):
    pages = write(tmp_path, [pair(i) for i in range(130)])
    assert len(pages) == 3
    names = [
        name for page in pages for name in re.findall(r'<img src="(\d+).png"', page)
    ]
    assert names == [f"{i:04d}" for i in range(130)]


def test_pages_lead_to_their_neighbours_and_to_the_report(tmp_path):
    pages = write(tmp_path, [pair(i) for i in range(130)])
    for number, page in enumerate(pages, 1):
        links = set(re.findall(r'href="([^"#:]+html)"', page))
        around = {page_name(i) for i in (number - 1, number + 1) if 1 <= i <= 3}
        assert around <= links
        assert "../report.html" in links
        assert all((tmp_path / link).exists() for link in links - {"../report.html"})
    assert 'rel="prev"' not in pages[0]
    assert 'rel="next"' not in pages[-1]


def test_text_from_outside_stays_text_and_what_was_not_drawn_is_said(tmp_path):
    (page,) = write(
        tmp_path, [pair(0, prompt=HOSTILE, generation=HOSTILE, picture=None)]
    )
    assert "alert(1)</script>" not in page
    assert "eval.copy_pictures" in page
    assert page.count("<script>") == 1


def test_no_pairs_no_pages(tmp_path):
    assert write(tmp_path, [pair(0, grade="none", copy_of=None)]) == []


def test_the_surest_come_first_whatever_the_order(tmp_path):
    pairs = [
        pair(0, grade="likely copy"),
        pair(1, grade="none"),
        pair(2, grade="exact", similarity=0.5),
        pair(3, grade="likely copy", similarity=0.95),
        pair(4, grade="exact", similarity=0.5),
    ]
    expected = ["0002", "0004", "0003", "0000"]
    for given in (pairs, pairs[::-1]):
        (page,) = write(tmp_path, given)
        assert re.findall(r'<img src="(\d+).png"', page) == expected


def test_pictures_start_blurred_where_that_is_asked_for(tmp_path):
    for blurred in (False, True):
        pages = write(tmp_path, [pair(i) for i in range(70)], blurred=blurred)
        for page in pages:
            (switch,) = re.findall(r'<input type="checkbox"[^>]* id="blur"[^>]*>', page)
            assert (" checked" in switch) == blurred
            assert page.count('<span class="frame"><img') == page.count("<img")
