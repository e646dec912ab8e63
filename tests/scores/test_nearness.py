import numpy as np
import pytest

from copymit.embedding.store import Embeddings, unit_rows
from copymit.scores.nearness import (
    SamePicture,
    duplicate_threshold,
    measure_nearness,
    published_threshold,
)
from copymit.search.exact import search_exact

ALONE = 2.0  # only equal pixels are one picture


@pytest.fixture
def points(rng):
    return unit_rows(rng.normal(size=(200, 16)).astype(np.float32))


def nearness(queries, references, pictures=None, own=None, threshold=ALONE):
    if pictures is None:
        pictures = np.arange(len(references))
    embeddings = Embeddings([str(i) for i in range(len(references))], [references])
    found = search_exact(queries, references, 11, exclude=own)
    return measure_nearness(found, embeddings, SamePicture(pictures, threshold), own)


def test_it_is_the_distance_to_the_nearest_against_the_median_of_the_next(points):
    found = nearness(points[:5], points[5:])
    for row, point in enumerate(points[:5]):
        distances = np.sort(np.linalg.norm(points[5:] - point, axis=1))[:11]
        expected = np.log(np.median(distances[1:]) / distances[0])
        # The median of ten logarithms is the mean of two.
        assert found.nearness[row] == pytest.approx(expected, abs=2e-2)
        assert found.similarity[row] == pytest.approx(
            1 - distances[0] ** 2 / 2, abs=1e-5
        )


def test_duplicates_of_the_nearest_do_not_hide_it(points, rng):
    """A training image that was there four times was no nearer than its twins."""
    copy = unit_rows(points[:1] + 0.02 * rng.normal(size=(1, 16)).astype(np.float32))
    alone = nearness(copy, points).nearness[0]
    references = np.concatenate([points, points[[0, 0, 0]]])
    pictures = np.concatenate([np.arange(200), [0, 0, 0]])
    again = nearness(copy, references, pictures)
    assert again.nearness[0] == pytest.approx(alone, abs=0.2)
    assert pictures[again.reference[0]] == 0
    near = points[[0, 0, 0]] + 0.01 * rng.normal(size=(3, 16)).astype(np.float32)
    altered = np.concatenate([points, unit_rows(near)])
    assert nearness(copy, altered, threshold=0.98).nearness[0] > 0.8 * alone


def test_an_image_that_has_only_duplicates_of_one_picture_near_has_no_scale(points):
    references = np.concatenate([points[:1].repeat(20, 0), points[1:]])
    pictures = np.concatenate([np.zeros(20, int), np.arange(1, 200)])
    found = nearness(points[:1], references, pictures)
    assert np.isnan(found.nearness[0])
    assert found.reference[0] < 20


def test_a_training_image_is_compared_with_other_pictures(points):
    references = np.concatenate([points, points[:1]])
    pictures = np.append(np.arange(200), 0)
    own = np.arange(201)
    found = nearness(references, references, pictures, own)
    assert pictures[found.reference[0]] != 0
    assert found.similarity.max() < 0.999
    assert found.nearness[0] == pytest.approx(found.nearness[200], abs=1e-5)


def test_one_class_that_is_nearer_than_ten_is_not_nearer_to_one_of_its_images(rng):
    """Cosines within a narrow class are high, for all pairs alike."""
    centres = 3 * rng.normal(size=(2, 32))
    spread = np.repeat([0.2, 1.0], 300)[:, None]
    images = np.repeat(centres, 300, axis=0) + spread * rng.normal(size=(600, 32))
    images = unit_rows(images.astype(np.float32))
    narrow, wide = images[:20], images[300:320]
    trained = np.concatenate([images[20:300], images[320:]])
    found = nearness(np.concatenate([narrow, wide]), trained)
    assert found.similarity[:20].min() > found.similarity[20:].max()
    assert abs(found.nearness[:20].mean() - found.nearness[20:].mean()) < 0.06


def test_the_threshold_is_calibrated_and_at_least_the_published_one(points):
    own = np.arange(200)
    found = search_exact(points, points, 5, exclude=own)
    calibrated = duplicate_threshold("some_net", found, own, own)
    assert found.similarities[:, 0].max() < calibrated < 1
    published = duplicate_threshold("sscd_288_int8", found, own, own)
    assert published == max(calibrated, published_threshold("sscd_288_int8"))
    few = search_exact(points[:50], points[:50], 5, exclude=own[:50])
    assert duplicate_threshold("some_net", few, own[:50], own[:50]) > 1
