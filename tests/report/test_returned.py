import dataclasses

import pandas as pd

from copymit.report.evaluated_run import list_generations
from copymit.report.pictures import DETAILS
from copymit.report.returned import list_returned
from tests.report.test_gallery import small_run


def graded(grades):
    """A run of which some generations have a grade and what they are a copy of."""
    run = small_run()
    ids = [f"{i:06d}" for i in range(30)]
    table = pd.DataFrame({"generation": ids, "grade": "none", "copy_of": None})
    for row, (grade, copied) in grades.items():
        table.loc[row, ["grade", "copy_of"]] = [grade, copied]
    return dataclasses.replace(run, measured=table)


def returned(run, size=9):
    return list_returned(run, list_generations(run), size, DETAILS[0])


def test_copies_are_gathered_by_what_they_copy_the_most_frequent_first():
    found = returned(
        graded(
            {
                3: ("exact", "r/1.png"),
                4: ("near copy", "r/2.png"),
                7: ("likely copy", "r/2.png"),
                8: ("near copy", "r/2.png"),
            }
        )
    )
    assert [(r.id, r.num_copies) for r in found] == [("r/2.png", 3), ("r/1.png", 1)]
    similarities = [c.generation.similarity for c in found[0].copies]
    assert similarities == sorted(similarities, reverse=True)
    assert {c.generation.id for c in found[0].copies} == {"000004", "000007", "000008"}
    assert found[0].caption == "Caption of r/2.png"


def test_what_agrees_in_pixels_alone_or_not_at_all_did_not_come_back():
    run = graded({3: ("pixels alone", "r/1.png")})
    assert returned(run) == []
    assert returned(small_run()) == []


def test_an_image_that_came_back_often_shows_few_of_its_copies_and_counts_all():
    (only,) = returned(graded(dict.fromkeys(range(20), ("exact", "r/1.png"))))
    assert only.num_copies == 20
    assert len(only.copies) == 6


def test_only_so_many_images_are_shown():
    run = graded({i: ("exact", f"r/{i}.png") for i in range(8)})
    assert len(returned(run, size=5)) == 5
