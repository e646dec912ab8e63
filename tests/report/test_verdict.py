import json

import numpy as np
import pytest

from copymit.report.score_table import tabulate_scores
from copymit.report.verdict import (
    answer,
    format_number,
    format_value,
    make_headline,
    make_tiles,
    quality_key,
    read_estimate,
)


def with_interval(key, value, margin=0.01):
    return {key: value, f"{key}_ci95": [value - margin, value + margin]}


def similarity(mean, background, margin=0.01):
    return {
        **with_interval("similarity_mean", mean, margin),
        **with_interval("background_similarity_mean", background, margin),
    }


def hits(duplicated, others, margin=0.02):
    return {
        **with_interval("prompted_image_hits_duplicated", duplicated, margin),
        **with_interval("prompted_image_hits_unduplicated", others, margin),
    }


def plain(headline):
    text = f"{headline.verdict}. {' '.join(headline.sentences)}"
    return text.replace("\N{NO-BREAK SPACE}", " ")


def decided(copies, of=210, **others):
    """What the score stage says of `copies` copies among `of` generations."""
    return {
        "num_copies": copies,
        "num_exact_copies": 0,
        "num_generations": of,
        "copied_images": copies,
        "copied_share": copies / of,
        "copied_share_ci95": [0.03, 0.1],
        "missed_share_upper": None if copies else 0.0142,
        "copy_threshold": 0.61,
        "false_discovery_rate": 0.01,
        **others,
    }


def test_the_first_line_counts_copies_and_says_how_sure_that_is():
    found = decided(12, copied_images=11, num_exact_copies=10)
    assert answer(found) == (
        "12 of 210 generations are copies of 11 training images (10 exact); "
        "false discovery rate 1 %"
    )
    assert make_headline(found).tone == "copies"
    assert answer(decided(1)).startswith(
        "1 of 210 generations is a copy of 1 training "
    )


def test_without_copies_it_says_what_would_have_escaped():
    assert answer(decided(0)) == (
        "None found above similarity 0.610 in 210 generations; a share of up to 1.4 % "
        "would escape (95 %)"
    )
    assert make_headline(decided(0)).tone == "none"


def test_where_nothing_can_be_calibrated_absence_is_not_claimed():
    headline = make_headline(decided(0, copy_threshold=None))
    assert headline.tone == "unclear"
    assert "too few training images" in headline.verdict
    assert make_headline({}).verdict == "Copies were not looked for"


def test_a_pair_that_agrees_in_pixels_alone_is_never_silent():
    headline = make_headline(decided(0, num_pixels_alone=1))
    assert headline.tone == "partly"
    assert headline.verdict.endswith("; 1 further pair agrees in pixels alone")


def test_the_papers_numbers_are_named_as_such_and_decide_nothing():
    near = similarity(0.83, 0.62) | with_interval("dataset_similarity", 0.99)
    headline = make_headline(decided(0) | near)
    assert headline.tone == "none"
    assert "In the paper's numbers, the 95th percentile" in plain(headline)
    assert "0.990 [0.980, 1.00]" in plain(headline)


def test_duplicated_images_that_come_back_are_compared_with_others():
    text = plain(make_headline(decided(3) | hits(0.95, 0.5)))
    assert "(95.0 % [93.0, 97.0]) than others (50.0 % [48.0, 52.0])." in text
    text = plain(make_headline(decided(3) | hits(0.02, 0.02)))
    assert "come back about as often (2.00 % [0.00, 4.00])" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8349, "0.835"),
        (0.0, "0.00"),
        (1, "1"),
        (100.0, "100"),
        (-0.25, "−0.250"),
        (12345, "12,345"),
        (999.9, "1,000"),
        (0.0000123, "1.23e−05"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert format_number(value) == text


def test_shares_are_percentages_and_nothing_else_is():
    shares = ["similarity_above_0.5", "prompted_image_hits", "recall", "search_recall"]
    assert {format_value(key, 0.5) for key in shares} == {"50.0\N{NO-BREAK SPACE}%"}
    others = ["similarity_mean", "density", "similarity_to_duplicated"]
    assert {format_value(key, 0.5) for key in others} == {"0.500"}


@pytest.mark.parametrize("value", [None, float("nan"), True, "0.5", [0.5]])
def test_what_is_no_number_is_no_estimate(value):
    assert read_estimate({"x": value}, "x") is None


def test_numpy_numbers_and_missing_intervals_are_understood():
    estimate = read_estimate({"x": np.float32(0.5), "x_ci95": None}, "x")
    assert estimate == (0.5, 0.5, 0.5)
    assert not estimate.has_interval


def test_tiles_show_what_was_measured_and_its_baselines():
    scores = similarity(0.83, 0.62) | {"fd_net": 18.0, "fd_net_to_heldout": 30.0}
    scores["prompted_image_hits"] = 0.5
    tiles = {tile.label: tile for tile in make_tiles(scores)}
    assert list(tiles) == [
        "Mean similarity",
        "Prompted images that come back",
        "Fréchet distance (net)",
    ]
    assert "Training images among themselves: 0.620" in tiles["Mean similarity"].meaning
    split = make_tiles(scores | hits(0.9, 0.4))
    assert [t.label for t in split][1:3] == [
        "Duplicated images that come back",
        "Other images that come back",
    ]


def test_fid_goes_before_other_distances_and_those_to_heldout_images():
    assert quality_key({"fd_a_to_heldout": 1.0, "fd_b": 2.0, "fid": 3.0}) == "fid"
    assert quality_key({"fd_a_to_heldout": 1.0, "fd_b": 2.0}) == "fd_b"
    assert quality_key({"fid_to_heldout": 1.0, "fid": None}) is None


def test_every_score_is_in_the_table_once():
    scores = similarity(0.83, 0.62) | {
        "embedder": "net",
        "pixels_similarity_mean": 0.5,
        "pixels_background_similarity_mean": 0.4,
        "fd_net": 18.0,
        "search_settings": {"tile": 4096},
        "something_new": 3,
        "not_measured": None,
        "warnings": ["few"],
    }
    groups = tabulate_scores(scores)
    keys = [row.key for group in groups for row in group.rows]
    left_out = {"not_measured", "warnings"}
    assert sorted(keys) == sorted(
        k for k in scores if not k.endswith("_ci95") and k not in left_out
    )
    headings = [group.heading for group in groups]
    assert headings[0].endswith("(by net)")
    assert headings[-1].endswith("(by pixels)")
    values = {row.key: row.value for group in groups for row in group.rows}
    assert json.loads(values["search_settings"]) == {"tile": 4096}
