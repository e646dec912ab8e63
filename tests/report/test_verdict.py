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


FOUND = {
    "num_generations": 210,
    "num_copies": 12,
    "num_exact_copies": 10,
    "num_near_copies": 0,
    "num_likely_copies": 2,
    "num_pixels_alone": 0,
    "copied_images": 11,
    "copied_share": 12 / 210,
    "copied_share_ci95": [0.0298, 0.0977],
    "false_discovery_rate": 0.01,
    "copy_threshold": 0.412,
    "copy_null": "training images",
    "copy_null_size": 4990,
    "copy_null_duplicates": 10,
    "num_repeated_generations": 5,
    "num_repeat_groups": 2,
    "largest_repeat_group": 3,
    "num_repeated_across_prompts": 2,
}
NOTHING = FOUND | {
    "num_copies": 0,
    "num_exact_copies": 0,
    "num_likely_copies": 0,
    "copied_images": 0,
    "copied_share": 0.0,
    "missed_share_upper": 0.01416,
}


def test_the_answer_counts_copies_and_says_how_sure_they_are():
    assert answer(FOUND) == (
        "12 of 210 generations are copies of 11 training images (10 exact); false "
        "discovery rate 1 %"
    )
    one = FOUND | {"num_copies": 1, "num_exact_copies": 0, "copied_images": 1}
    assert answer(one).startswith(
        "1 of 210 generations is a copy of 1 training image (none exact); false"
    )


def test_where_none_was_found_the_answer_says_what_would_escape():
    assert answer(NOTHING) == (
        "None found above similarity 0.412 in 210 generations; a share of up to 1.4 % "
        "would escape (95 %)"
    )
    assert make_headline(NOTHING).tone == "none"


def test_a_pair_below_the_pixel_threshold_is_never_silent():
    found = NOTHING | {"num_pixels_alone": 1}
    assert answer(found).endswith("; 1 further pair agrees in pixels alone")
    assert make_headline(found).tone == "partly"
    assert answer(FOUND | {"num_pixels_alone": 3}).endswith(
        "1 %; 3 further pairs agree in pixels alone"
    )


def test_what_only_pixels_called_is_said():
    headline = make_headline(FOUND | {"num_copies_by_pixels": 2})
    assert "alone); 2 of them would not have been called without pixels. That" in plain(
        headline
    )


def test_without_enough_training_images_only_exact_copies_are_spoken_of():
    few = NOTHING | {"copy_threshold": None}
    assert "too few training images" in answer(few)
    assert make_headline(few).tone == "unclear"
    assert "false discovery" not in answer(FOUND | {"copy_threshold": None})


def test_scores_without_a_decision_claim_nothing():
    headline = make_headline({"similarity_mean": 0.9})
    assert headline == ("Copies were not looked for", [], "unclear")


def test_the_sentences_give_grades_calibration_repeats_and_the_papers_numbers():
    paper = with_interval("dataset_similarity", 0.71)
    paper |= with_interval("background_dataset_similarity", 0.56)
    paper |= with_interval("similarity_above_0.5", 0.06)
    headline = make_headline(FOUND | paper | hits(0.95, 0.5))
    assert headline.tone == "copies"
    assert plain(headline).removeprefix(f"{answer(FOUND)}. ") == (
        "10 exact (pixels agree); 2 likely (the descriptor alone). That is 5.71 % [2.98, "
        "9.77] of the generations. How near comes what is no copy, 4,990 training images "
        "and their nearest others tell; 10 duplicates among them left out. 5 generations "
        "are the same picture as another, in 2 groups of up to 3; 2 of them for different "
        "prompts. In the paper's numbers, the 95th percentile of similarity is 0.710 "
        "[0.700, 0.720] (training images to each other: 0.560 [0.550, 0.570]), and 6.00 % "
        "[5.00, 7.00] lie above 0.5. Images duplicated in training come back more often "
        "(95.0 % [93.0, 97.0]) than others (50.0 % [48.0, 52.0])."
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
