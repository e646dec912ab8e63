"""CLIP score: known angles, the convention of others, and bad input."""

import numpy as np
import pytest

from copymit.scores.clip_score import clip_score


def at_angles(degrees, lengths=None):
    """Images along the first axis, and captions at these angles to them."""
    angles = np.radians(degrees)
    images = np.tile([1.0, 0.0], (len(angles), 1))
    texts = np.stack([np.cos(angles), np.sin(angles)], 1)
    return images, texts if lengths is None else texts * np.reshape(lengths, (-1, 1))


def test_it_is_the_cosine_of_each_pair_whatever_the_lengths():
    images, texts = at_angles([0, 60, 90, 180], lengths=[1, 5, 0.1, 300])
    score = clip_score(images * 7, texts)
    np.testing.assert_allclose(score.values, [1, 0.5, 0, -1], atol=1e-12)
    assert score.mean == pytest.approx(0.125)


def test_a_hundred_times_it_is_torchmetrics_where_no_cosine_is_negative(rng):
    images, texts = rng.standard_normal((2, 50, 8))
    texts += 2 * images
    score = clip_score(images, texts)
    assert (score.values > 0).all()
    cosines = [
        i @ t / np.sqrt(i @ i * (t @ t)) for i, t in zip(images, texts, strict=True)
    ]
    assert 100 * score.mean == pytest.approx(
        np.mean([100 * max(c, 0) for c in cosines])
    )


def test_the_interval_has_the_width_of_the_standard_error(rng):
    images, texts = at_angles(rng.uniform(60, 80, 400))
    score = clip_score(images, texts)
    low, high = score.ci95
    assert low < score.mean < high
    expected = 2 * 1.96 * score.values.std() / np.sqrt(400)
    # 2000 resamples know a quantile's place to a few per cent.
    assert high - low == pytest.approx(expected, rel=0.1)


def test_generations_of_one_prompt_count_as_one_for_the_interval(rng):
    angles = rng.uniform(30, 80, 20)
    once = clip_score(*at_angles(angles))
    images, texts = at_angles(np.repeat(angles, 10))
    clustered = clip_score(images, texts, clusters=np.repeat(np.arange(20), 10))
    assert clustered.mean == pytest.approx(once.mean)
    np.testing.assert_allclose(clustered.ci95, once.ci95, rtol=0.05)  # resampling
    assert clip_score(images, texts, clusters=np.zeros(200, int)).ci95 is None


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (np.ones((3, 4)), np.ones((2, 4))),
        (np.ones((3, 4)), np.ones((3, 5))),
        (np.ones((0, 4)), np.ones((0, 4))),
        (np.ones(4), np.ones(4)),
    ],
)
def test_features_that_are_not_pairs_are_refused(images, texts):
    with pytest.raises(ValueError, match="give one row an image"):
        clip_score(images, texts)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_features_without_a_direction_name_their_row(value):
    texts = np.ones((3, 4))
    texts[1] = value
    with pytest.raises(ValueError, match=r"1 rows of text_features .* first row 1"):
        clip_score(np.ones((3, 4)), texts)
