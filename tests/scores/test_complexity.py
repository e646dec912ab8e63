import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from copymit.scores.complexity import (
    Complexity,
    complexity_correlations,
    grey_entropy,
    jpeg_bytes,
    measure_complexity,
    total_variation,
)


def grey_image(levels):
    """An RGB image of one row per entry, 8 pixels wide."""
    column = np.array(levels, np.uint8)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(column, (len(levels), 8, 3)))


@pytest.mark.parametrize("num_levels", [1, 2, 16, 256])
def test_equally_frequent_grey_levels_have_entropy_log2(num_levels):
    levels = np.arange(256) // (256 // num_levels)
    assert grey_entropy(grey_image(levels)) == pytest.approx(np.log2(num_levels))


def test_grey_is_weighted_luma():
    # 0.2125 * 200 = 42.5 against 0.0721 * 200 = 14.42: two levels, one bit.
    image = np.zeros((2, 8, 3), np.uint8)
    image[0, :, 0], image[1, :, 2] = 200, 200
    assert grey_entropy(image) == pytest.approx(1)
    # 0.7154 * 10 and 0.2125 * 34 both round to 7: two colours, one grey.
    image[:] = 0
    image[0, :, 1], image[1, :, 0] = 10, 34
    assert grey_entropy(image) == 0


def test_total_variation_of_stripes_is_counted_by_hand():
    # Three steps of 10, 30 and 20 levels, in 8 columns and 3 channels.
    assert total_variation(grey_image([0, 10, 40, 20])) == 60 * 8 * 3
    turned = np.ascontiguousarray(grey_image([0, 10, 40, 20]).transpose(1, 0, 2))
    assert total_variation(turned) == 60 * 8 * 3
    assert total_variation(grey_image([7, 7])) == 0


def test_jpeg_bytes_is_the_size_of_a_file_that_opens():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    assert jpeg_bytes(image) == len(buffer.getvalue())
    assert jpeg_bytes(image) > 2 * jpeg_bytes(np.zeros_like(image))


def images_of_rising_complexity(count):
    rng = np.random.default_rng(0)
    return [
        (128 + level * rng.normal(size=(32, 32, 3))).clip(0, 255).astype(np.uint8)
        for level in np.linspace(0, 40, count)
    ]


def test_every_measure_rises_with_noise():
    measured = measure_complexity(images_of_rising_complexity(6))
    for values in measured:
        assert values.shape == (6,)
        assert (np.diff(values) > 0).all()


def test_copies_of_simple_images_correlate_negatively():
    images = images_of_rising_complexity(12)
    similarities = np.linspace(0.9, 0.2, 12)
    scores = complexity_correlations(similarities, iter(images))
    names = ["entropy", "jpeg_bytes", "total_variation", "entropy_jpeg"]
    expected_keys = {
        f"complexity_{n}_{s}"
        for n in names
        for s in ("pearson", "pearson_ci95", "pvalue")
    }
    assert set(scores) == expected_keys
    for name in names:
        assert scores[f"complexity_{name}_pearson"] < -0.6
        assert scores[f"complexity_{name}_pvalue"] < 0.05
    json.dumps(scores, allow_nan=False)


def test_correlations_of_measured_complexity_are_scipys():
    rng = np.random.default_rng(0)
    similarities = rng.random(20)
    measured = Complexity(*(1 + rng.random((3, 20))))
    scores = complexity_correlations(similarities, measured)
    product = measured.entropy * np.sqrt(measured.jpeg_bytes)
    for name, values in {"entropy": measured.entropy, "entropy_jpeg": product}.items():
        expected = stats.pearsonr(similarities, values)
        assert scores[f"complexity_{name}_pearson"] == pytest.approx(expected.statistic)
        assert scores[f"complexity_{name}_pvalue"] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("constant", ["similarities", "images", "two pairs"])
def test_what_has_no_correlation_is_none(constant, recwarn):
    images, similarities = images_of_rising_complexity(5), np.linspace(0, 1, 5)
    if constant == "similarities":
        similarities = np.full(5, 0.7)
    elif constant == "images":
        images = [images[2]] * 5
    else:
        images, similarities = images[:2], similarities[:2]
    scores = complexity_correlations(similarities, images)
    assert len(scores) == 12
    assert set(scores.values()) == {None}
    assert not recwarn.list


IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("similarities", "images", "message"),
    [
        (np.ones(2), [], "no images"),
        (np.ones(0), [IMAGE], "similarities must be a non-empty"),
        (np.array([np.nan]), [IMAGE], "NaN or infinite"),
        (np.ones(2), [IMAGE], "2 similarities but 1 images"),
        (np.ones(2), [IMAGE, IMAGE[..., 0]], r"image 1 has shape \(4, 4\)"),
        (np.ones(1), [IMAGE.astype(np.float32)], "type float32"),
        (np.ones(1), [IMAGE[..., :1]], r"\(4, 4, 1\)"),
    ],
)
def test_bad_input_is_named(similarities, images, message):
    with pytest.raises(ValueError, match=message):
        complexity_correlations(similarities, images)


def test_correlations_have_intervals_and_p_values_over_clusters(rng):
    """Twenty generations of each of ten prompts that are all but equal."""
    similarities, entropy = rng.normal(size=(2, 10))
    entropy += 10 + 1.5 * similarities
    clusters = np.repeat(np.arange(10), 20)
    measured = Complexity(*(np.repeat(entropy, 20) for _ in range(3)))
    apart, scores = (
        complexity_correlations(np.repeat(similarities, 20), measured, by)
        for by in (None, clusters)
    )
    few = Complexity(entropy, entropy, entropy)
    alone = complexity_correlations(similarities, few)
    for key in ("complexity_entropy_pearson", "complexity_entropy_pvalue"):
        assert scores[key] == pytest.approx(alone[key])
    assert scores["complexity_entropy_pearson"] == apart["complexity_entropy_pearson"]
    assert (
        scores["complexity_entropy_pvalue"] > 100 * apart["complexity_entropy_pvalue"]
    )
    key = "complexity_entropy_pearson_ci95"
    assert scores[key] == pytest.approx(alone[key])
    assert np.ptp(scores[key]) > 3 * np.ptp(apart[key])


def test_two_clusters_say_nothing_of_a_correlation():
    values = np.array([1.0, 2.0, 3.0, 5.0])
    scores = complexity_correlations(
        values, Complexity(values, values, values), [0, 0, 1, 1]
    )
    assert scores["complexity_entropy_pearson"] == pytest.approx(1)
    assert scores["complexity_entropy_pearson_ci95"] is None
    assert scores["complexity_entropy_pvalue"] is None


def test_total_variation_of_a_large_image_is_exact(rng):
    image = rng.choice(np.array([0, 255], np.uint8), (700, 400, 3))
    levels = image.astype(float)
    expected = sum(np.abs(np.diff(levels, axis=axis)).sum() for axis in (0, 1))
    assert total_variation(image) == expected > 2**27
