"""What a gain costs, drawn: names of what is not beaten, and changes by seed."""

import numpy as np
import pandas as pd
import pytest

from configs.sweeps_types import Changes, Differences, Score, Tradeoff
from launch.figures.figure import draw
from launch.figures.tradeoff import pareto_front

COPIED = Score("similarity", ("similarity",))
DISTANCE = Score("distance", ("distance",))
CHANGES = Changes("mitigation", "none", (COPIED,), within=("prompts",))
# What each setting adds to the similarity and to the distance.
EFFECTS = {
    "none": (0.0, 0.0),
    "strong": (-0.3, 20.0),
    "weak": (-0.1, 5.0),
    "useless": (0.05, 10.0),
}


@pytest.fixture
def table() -> pd.DataFrame:
    """Seeds differ by more than settings do; each setting does the same to all."""
    return pd.DataFrame(
        {
            "mitigation": name,
            "prompts": prompts,
            "seed": seed,
            "similarity": 0.5 + 0.2 * seed + change + 0.001 * seed * len(name),
            "distance": 100.0 + 40.0 * seed + cost,
        }
        for name, (change, cost) in EFFECTS.items()
        for prompts in ("trigger", "general")
        for seed in range(3)
    )


def draw_one(panel, table, figures):
    draw([panel], table, pd.DataFrame())
    return figures[0].axes[0]


def test_the_front_is_what_no_other_beats_in_both():
    points = [(0.0, 0.8), (20.0, 0.5), (5.0, 0.7), (10.0, 0.85), (20.0, 0.5)]
    assert pareto_front(points) == [0, 2, 1]


def test_settings_on_the_front_and_the_reference_are_named(table, figures):
    axes = draw_one(Tradeoff(DISTANCE, COPIED, "mitigation"), table, figures)
    assert sorted(t.get_text() for t in axes.texts) == ["none", "strong", "weak"]


def test_what_is_beaten_is_drawn_and_the_reference_is_named_though_it_is(
    table, figures
):
    beaten = table.copy()
    beaten.loc[beaten["mitigation"] == "none", "similarity"] += 0.5
    beaten.loc[beaten["mitigation"] == "none", "distance"] += 100
    axes = draw_one(Tradeoff(DISTANCE, COPIED, "mitigation"), beaten, figures)
    assert {t.get_text() for t in axes.texts} == {"none", "strong", "weak"}
    drawn = {tuple(c.lines[0].get_xydata()[0]) for c in axes.containers}
    assert len(drawn) == 4


def test_names_do_not_cover_each_other(table, figures):
    crowded = table.copy()
    crowded["similarity"] = 0.5 + 1e-3 * (crowded["similarity"] - 0.5)
    axes = draw_one(Tradeoff(DISTANCE, COPIED, "mitigation"), crowded, figures)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_changes_are_paired_by_seed_and_sorted(table, figures):
    panel = Differences(COPIED, CHANGES, "prompts")
    axes = draw_one(panel, table, figures)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["strong", "weak", "useless"]
    assert axes.yaxis_inverted()  # the largest fall is on top
    trigger, general = axes.containers
    x = np.asarray(trigger.lines[0].get_xdata(), float)
    order = [names.index(name) for name in ("strong", "weak", "useless")]
    np.testing.assert_allclose(
        x[order], [-0.298, -0.1, 0.053], atol=1e-3
    )  # and not the spread of 0.2 between seeds
    (bars,) = trigger.lines[2]
    widths = [np.ptp(segment[:, 0]) for segment in bars.get_segments()]
    assert max(widths) < 0.02
    np.testing.assert_allclose(x, general.lines[0].get_xdata().astype(float))


def test_the_same_table_gives_the_same_bytes(table):
    panels = [
        Differences(COPIED, CHANGES, "prompts"),
        Tradeoff(DISTANCE, COPIED, "mitigation", only=("prompts", "general")),
    ]
    first, second = (draw(panels, table, pd.DataFrame()) for _ in range(2))
    assert first == second
