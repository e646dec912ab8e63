import json

import numpy as np
import pytest

from copymit.report.score_table import tabulate_scores
from copymit.report.verdict import (
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


def test_generations_above_the_background_are_called_copies_with_the_numbers():
    headline = make_headline(similarity(0.83, 0.62) | hits(0.95, 0.5))
    assert headline.tone == "copies"
    assert plain(headline) == (
        "This model copies. Its generations are closer to training images (mean "
        "similarity 0.830 [0.820, 0.840]) than training images are to each other "
        "(0.620 [0.610, 0.630]). Images duplicated in training come back more often "
        "(95.0 % [93.0, 97.0]) than others (50.0 % [48.0, 52.0])."
    )


def test_generations_below_the_background_show_no_copying():
    headline = make_headline(similarity(0.5, 0.62) | hits(0.02, 0.02))
    assert headline.tone == "none"
    assert plain(headline).startswith("No sign of copying. Its generations are less ")
    assert "come back about as often (2.00 % [0.00, 4.00])" in plain(headline)
    assert plain(headline).endswith("the intervals overlap.")


def test_overlapping_intervals_are_called_unclear():
    headline = make_headline(similarity(0.64, 0.62, margin=0.03))
    assert headline.tone == "unclear"
    assert plain(headline).startswith("Whether this model copies is unclear.")
    assert "the intervals overlap" in plain(headline)


def test_generations_of_one_prompt_are_no_verdict():
    scores = similarity(0.83, 0.62) | {"similarity_mean_ci95": None}
    headline = make_headline(scores)
    assert headline.tone == "unclear"
    assert "mean similarity to training images is 0.830, and 0.620 [" in plain(headline)


def test_touching_intervals_count_as_overlapping():
    scores = {
        "similarity_mean": 0.6,
        "similarity_mean_ci95": [0.5, 0.7],
        "background_similarity_mean": 0.5,
    }
    assert make_headline(scores).tone == "unclear"


def test_a_model_whose_closest_generations_alone_are_above_copies_some():
    scores = similarity(0.5, 0.62)
    scores |= with_interval("dataset_similarity", 0.99)
    scores |= with_interval("background_dataset_similarity", 0.8)
    headline = make_headline(scores)
    assert headline.verdict == "This model copies some training images"
    assert "0.990 [0.980, 1.00]" in plain(headline)
    assert "(mean 0.500 [0.490, 0.510] against 0.620 [0.610, 0.630])" in plain(headline)


def test_duplicated_images_that_come_back_are_a_sign_even_below_the_background():
    headline = make_headline(similarity(0.5, 0.62) | hits(0.4, 0.1))
    assert headline.tone == "partly"
    assert headline.verdict == "Signs of copying where images were duplicated"
    assert "Yet images duplicated in training come back more often" in plain(headline)


def test_without_a_background_nothing_is_claimed():
    headline = make_headline(with_interval("dataset_similarity", 0.99))
    assert headline.tone == "unclear"
    assert headline.verdict == "Copying cannot be judged"
    assert "0.990 [0.980, 1.00]" in plain(headline)
    assert make_headline({}).sentences == [
        "The similarity to training images was not measured."
    ]


@pytest.mark.parametrize(
    ("pixels", "opinion"),
    [(0.9, "agrees"), (0.3, "disagrees"), (0.5, "sees no clear difference")],
)
def test_pixels_give_a_second_opinion(pixels, opinion):
    second = {f"pixels_{k}": v for k, v in similarity(pixels, 0.5).items()}
    assert f"network, {opinion}: " in plain(
        make_headline(similarity(0.83, 0.62) | second)
    )


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
