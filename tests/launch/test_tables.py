"""Scores become a table of settings: means, intervals, changes, and what is missing."""

import numpy as np

from configs.sweeps_types import Score, Trial
from launch.tables import abridge, format_number, lay_out, to_markdown
from tests.launch.fake_sweep import CHANGES, SIMILARITY, make_mitigated


def text_of(table, columns, changes=None):
    return to_markdown(lay_out(table, trials_of(table), columns, changes), "m")


def test_a_cell_says_when_it_lacks_seeds_that_the_row_has():
    table = make_mitigated().query("prompts == 'trigger'")
    table = table.assign(clip_score=[1.0, np.nan, 1.0, 2.0, 2.0, 2.0])
    clip = Score("CLIP", ("clip_score",))
    text = text_of(table, [clip])
    assert "| none | trigger | 3 | 1.000 [1.000, 1.000] (2 seeds) |" in text


def trials_of(table):
    """Trials that would have given such a table."""
    labels = table[["mitigation", "prompts", "seed"]].to_dict("records")
    return [Trial(n, "", labels=w) for n, w in zip(table.trial, labels, strict=True)]


def test_of_many_missing_trials_the_first_are_named():
    assert abridge(["a", "b"]) == "a, b"
    assert abridge([*"abcdefgh"]) == "a, b, c, d, e and 3 more"


def test_the_table_has_a_column_of_changes():
    table = make_mitigated()
    text = text_of(table, [SIMILARITY], CHANGES)
    assert "| similarity | change of similarity |" in text
    assert "| GN | general | 1 | 0.200 | +0.100 |" in text
    assert "Changes: against mitigation none, seed by seed." in text


def test_numbers_are_short():
    assert [format_number(v) for v in (0.12345, 123.45)] == ["0.123", "123.5"]
    assert format_number(0.256, percent=True) == "25.6 %"
