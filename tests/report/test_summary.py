"""The few numbers that matter, in columns."""

from copymit.report.summary import align, summary_rows

SCORES = {
    "copied_share": 0.25,
    "copied_share_ci95": [0.2, 0.31],
    "copied_images": 12,
    "dataset_similarity": 0.9,
    "dataset_similarity_ci95": [0.85, 0.95],
    "background_dataset_similarity": 0.6,
    "similarity_mean": 0.5,
    "fd_efficientnet_lite0": 33.25,
    "coverage": 0.5,
}


def test_five_numbers_have_intervals_and_what_training_images_have_among_themselves():
    head, *rows = summary_rows(SCORES)
    assert head == ("", "value", "95 % interval", "training images to each other")
    assert [row[0] for row in rows] == [
        "Share of copies",
        "Training images that were copied",
        "Dataset similarity (95th percentile)",
        "Mean similarity",
        "Fréchet distance (efficientnet_lite0)",
    ]
    assert [cell.replace("\xa0", " ") for cell in rows[0]] == [
        *("Share of copies", "25.0 %", "[20.0, 31.0]", ""),
    ]
    assert rows[2][-1] == "0.600"


def test_whether_prompted_images_come_back_is_told_before_quality():
    hits = {"prompted_image_hits": 0.5, "prompted_image_hits_duplicated": 0.75}
    assert "Duplicated" in summary_rows(SCORES | hits)[-1][0]
    only = {"prompted_image_hits": 0.5, "heldout_similarity_mean": 0.1}
    head, *rows = summary_rows(SCORES | only)
    assert head[-1] == "held-out images"
    assert len(rows) == 5
    assert rows[3][-1] == "0.100"
    assert rows[-1][1].startswith("50.0")


def test_without_scores_there_is_no_table():
    assert summary_rows({"alarms": []}) == []
    assert align([]) == []


def test_columns_stand_below_each_other():
    assert align([("", "b"), ("long", ""), ("c", "d")]) == [
        "      b",
        "long",
        "c     d",
    ]
