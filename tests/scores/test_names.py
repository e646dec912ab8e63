import pytest

from copymit.report import comparison, page, pairing, verdict
from copymit.scores.names import SCORES, look_up
from copymit.scores.tiled import EXTRACTED_BELOW


@pytest.mark.parametrize(
    ("key", "score", "embedder", "images"),
    [
        ("fd_net_to_heldout", "{fid,fd_EMBEDDER}_to_heldout", "", ""),
        ("fd_dinov2_vitl14", "fd_EMBEDDER", "", ""),
        ("search_recall", "search_recall", "", ""),
        ("clip_vit_b16_recall", "{precision,recall}", "clip_vit_b16", ""),
        ("background_clip_score", "background_clip_score", "", ""),
        (
            "pixels_background_similarity_mean",
            "similarity_mean",
            "pixels",
            "background",
        ),
        ("heldout_dataset_similarity", "dataset_similarity", "", "heldout"),
    ],
)
def test_a_key_is_taken_apart(key, score, embedder, images):
    found = look_up(key)
    assert (found.score.key, found.embedder, found.images) == (score, embedder, images)


def test_no_score_answers_to_the_key_of_another():
    keys = [s.key for s in SCORES if not set("{E") & set(s.key)]
    assert [look_up(key).score.key for key in keys] == keys


@pytest.mark.parametrize("key", ["something_new", "fd_net_ci95", "share_lower"])
def test_what_is_no_score_is_not_found(key):
    assert look_up(key) is None


def test_every_key_that_the_report_asks_for_is_a_score_with_a_label():
    """The comparison asked for a distance below 0.1, and never got an answer."""
    asked = [
        *comparison._ROWS,
        *verdict._TILES,
        *pairing._KEYS,
        *comparison._DIFFERENCES,
    ]
    assert all(verdict.score_label(key) for key in asked)
    assert f"tile_l2_below_{EXTRACTED_BELOW}" in comparison._ROWS
    assert all(look_up(key) for key in [*page._STATISTICS.values(), *verdict._GRADES])


def test_a_score_without_a_label_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'density' has no label in copymit/scores"):
        verdict.score_label("density")
