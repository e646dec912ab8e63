import dataclasses

import numpy as np
import pandas as pd
import pytest

from copymit.report.comparison import (
    check_same_protocol,
    compare_scores,
    describe_difference,
    list_doubts,
    tradeoff_panels,
)
from copymit.report.evaluated_run import EvaluatedRun, list_generations
from copymit.report.pairing import compare_pairs
from copymit.scores.similarity import prompted_image_summary

SCORES = {
    "embedder": "sscd",
    "protocol": "short side 288",
    "num_generations": 60,
    "dataset_similarity": 0.8,
    "similarity_mean": 0.6,
    "similarity_mean_ci95": [0.5, 0.7],
    "fid": 20.0,
}


def run_of(title="ours", shift=0.0, count=60, seed=0, **scores):
    """Three generations for each of twenty prompted images."""
    rng = np.random.default_rng(0)
    ids = [f"{i:06d}" for i in range(count)]
    hardness = rng.normal(0.6, 0.15, 20)[np.arange(count) % 20]
    noise = np.random.default_rng(len(title)).normal(0, 0.01, count)
    return EvaluatedRun(
        title=title,
        scores=SCORES | scores,
        settings={},
        matches=pd.DataFrame(
            {
                "generation": ids,
                "rank": 0,
                "reference": "r0",
                "similarity": hardness + shift + noise,
            }
        ),
        similarities={},
        read_generation=lambda _: np.zeros((4, 4, 3), np.uint8),
        read_reference=lambda _: np.zeros((4, 4, 3), np.uint8),
        captions={},
        prompts=pd.DataFrame(
            {
                "id": ids,
                "prompt": [f"prompt {i % 20}" for i in range(count)],
                "seed": seed,
                "example_id": [f"r{i % 20}" for i in range(count)],
            }
        ),
        duplication=None,
        metrics=None,
    )


def differences(*runs):
    return compare_pairs(runs, [list_generations(run) for run in runs])


@pytest.mark.parametrize(
    ("change", "ways"),
    [
        ({"embedder": "dino"}, ("sscd .short side 288.", "dino .short side 288.")),
        ({"protocol": "crop 256"}, ("sscd .short side 288.", "sscd .crop 256.")),
        ({"quality_protocol": "legacy"}, ("quality .clean.", "quality .legacy.")),
        ({"protocols": {"pixels": "b"}}, ("pixels .a.", "pixels .b.")),
    ],
)
def test_other_protocols_are_refused_with_both_names_and_the_way_out(change, ways):
    first = run_of(quality_protocol="clean", protocols={"pixels": "a"})
    second = dataclasses.replace(first, title="theirs", scores=first.scores | change)
    message = "'ours'.*{}.*'theirs'.*{}.*eval.embedders.*--compare".format(*ways)
    with pytest.raises(ValueError, match=message):
        check_same_protocol([first, first, second])


def test_runs_that_name_no_protocol_only_raise_doubts():
    unnamed = dataclasses.replace(run_of("theirs"), scores={"similarity_mean": 0.5})
    check_same_protocol([run_of(), run_of("other"), unnamed])
    assert list_doubts([run_of(), run_of("other")]) == []
    counts, protocol = list_doubts([run_of(num_generations=6000), unnamed])
    assert "(6,000, unknown)" in counts
    assert "protocol" in protocol


def test_the_same_prompts_and_noise_are_paired_and_a_small_shift_is_seen():
    (found,) = differences(run_of(), run_of("theirs", shift=-0.02))
    assert found.is_paired
    mean, dataset, share = found.rows
    assert mean.relation == dataset.relation == "lower"
    # Of 60 differences with a standard deviation of 0.014 each.
    found_shift = float(mean.value.replace("\N{MINUS SIGN}", "-"))
    assert found_shift == pytest.approx(-0.02, abs=4 * 0.014 / 60**0.5)
    assert share.value.endswith("%")
    assert "60 generations" in found.note
    assert "20 groups" in found.note


def test_what_pairs_tell_replaces_what_overlapping_intervals_do_not():
    first, second = run_of(), run_of("theirs", shift=-0.02)
    (found,) = differences(first, second)
    rows = {r.label: r for r in compare_scores([first, second], [found.relations])}
    assert rows["Mean similarity"].cells[1].relation == "lower"
    words = describe_difference(first.scores, second.scores, found.relations)
    assert "mean similarity is lower, prompt by prompt (0.600" in words
    plain = describe_difference(first.scores, second.scores)
    assert "mean similarity is about the same, the intervals overlap" in plain


def test_all_of_twelve_images_against_fewer_than_half_is_a_verdict():
    """100 % against 45.8 %: without an interval there was no relation."""
    images = np.arange(192) // 16
    runs = []
    for hits in (np.ones(192, bool), (images % 2 == 0) & (np.arange(192) % 16 < 15)):
        found = prompted_image_summary(
            np.ones(192), np.where(hits, images, 12), images, np.where(hits, 1.0, 0.0)
        )
        runs.append(run_of(**found))
    rows = {row.label: row for row in compare_scores(runs)}
    ours, theirs = rows["Prompted images that come back"].cells
    assert (ours.value, ours.interval) == ("100\xa0%", "[73.5,\xa0100]")
    assert theirs.relation == "lower"


def test_what_counts_as_extracted_is_compared_and_told_better_from_worse():
    """The row asked for another threshold than that of the score, and never came."""
    scores = {"tile_l2_below_0.15": 0.5, "tile_l2_below_0.15_ci95": [0.4, 0.6]}
    scores |= {"clip_score": 0.3, "clip_score_ci95": [0.29, 0.31]}
    others = {"tile_l2_below_0.15": 0.1, "tile_l2_below_0.15_ci95": [0.0, 0.2]}
    others |= {"clip_score": 0.2, "clip_score_ci95": [0.19, 0.21]}
    rows = compare_scores([run_of(**scores), run_of("theirs", **others)])
    cells = {row.label: row.cells[1] for row in rows}
    extracted = cells["Extracted: tiled distance below 0.15"]
    assert (extracted.value, extracted.relation) == ("10.0\xa0%", "lower")
    assert extracted.higher == "worse"
    assert (cells["CLIP score"].relation, cells["CLIP score"].higher) == (
        "lower",
        "better",
    )


def test_other_seeds_are_not_paired_and_the_page_says_so():
    (found,) = differences(run_of(), run_of("theirs", shift=-0.02, seed=1))
    assert not found.is_paired
    assert "Not paired" in found.note
    (mean, dataset) = found.rows
    assert mean.relation == "could be chance"
    assert (dataset.interval, dataset.relation) == ("", "")  # no interval was known


def test_generations_without_a_partner_are_counted():
    first, second = run_of(), run_of("theirs", count=50)
    (found,) = differences(first, second)
    assert found.is_paired
    assert "50 generations" in found.note
    assert "10 further generations have no partner" in found.note


def test_similarity_is_traded_off_against_each_quality_that_two_runs_have():
    runs = [run_of(clip_score=0.3), run_of("theirs", clip_score=0.31)]
    assert [panel.title for panel in tradeoff_panels(runs)] == [
        "FID; lower = more alike",
        "CLIP score; higher = fits the caption",
    ]
    lone = dataclasses.replace(runs[1], scores={"dataset_similarity": 0.5})
    assert tradeoff_panels([runs[0], lone]) == []
