"""The pairs and the table of the front page, drawn from a run."""

import numpy as np

from copymit.report.verdict import score_label
from docs.pictures import PAIRS, ROWS, draw_pairs
from tests.docs.pages import README
from tests.report.test_browser import browsed_run


def test_the_most_similar_pairs_come_first():
    run = browsed_run()
    axes = np.reshape(draw_pairs(run).axes, (2, PAIRS))
    nearest = run.matches[run.matches["rank"] == 0]
    best = nearest.sort_values("similarity", ascending=False).iloc[0]
    training, generated = (a.images[0].get_array() for a in axes[:, 0])
    np.testing.assert_array_equal(training, run.read_reference(best.reference))
    np.testing.assert_array_equal(generated, run.read_generation(best.generation))


def test_readme_has_the_rows_that_are_printed():
    text = README.read_text()
    assert all(
        score_label(key) and f"| {words} |" in text for key, words in ROWS.items()
    )
