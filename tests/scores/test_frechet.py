import numpy as np
import pytest
import scipy.linalg

from copymit.scores import frechet
from copymit.scores.frechet import (
    Gaussian,
    frechet_distance,
    gaussian_moments,
    kernel_distance,
    sample_size_warning,
)
from copymit.scores.manifold import manifold_scores


def random_covariance(size, seed, rank=None):
    factor = np.random.default_rng(seed).normal(size=(size, rank or 2 * size))
    return factor @ factor.T / factor.shape[1]


def test_moments_equal_numpys_in_blocks(monkeypatch):
    monkeypatch.setattr(frechet, "BLOCK_ELEMENTS", 6 * 7)
    features = np.random.default_rng(0).normal(5, 2, (50, 6)).astype(np.float32)
    mean, covariance = gaussian_moments(features)
    assert mean.dtype == covariance.dtype == np.float64
    wide = features.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(wide, rowvar=False), rtol=1e-10)


def test_moments_far_from_zero_keep_their_variance():
    # Sums of squares without centring would lose a variance of 1 beside 1e16.
    features = 1e8 + np.random.default_rng(0).normal(size=(2000, 2))
    np.testing.assert_allclose(gaussian_moments(features)[1], np.eye(2), atol=0.1)


def test_isotropic_gaussians_have_a_closed_form():
    mean1, mean2 = np.array([1.0, 2, 3]), np.array([2.0, 0, 3])
    # |m1 - m2|^2 + D (s1 - s2)^2 with standard deviations 2 and 5.
    distance = frechet_distance(mean1, 4 * np.eye(3), mean2, 25 * np.eye(3))
    assert distance == pytest.approx(5 + 3 * 9, abs=1e-10)


def test_gaussians_with_common_axes_have_a_closed_form():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    std1, std2 = np.array([1.0, 2, 3, 4]), np.array([4.0, 0, 3, 1])
    distance = frechet_distance(
        np.zeros(4),
        (axes * std1**2) @ axes.T,
        np.zeros(4),
        (axes * std2**2) @ axes.T,
    )
    assert distance == pytest.approx(((std1 - std2) ** 2).sum(), abs=1e-10)


@pytest.mark.parametrize(("count", "size"), [(500, 20), (30, 200)])
def test_a_set_has_distance_zero_to_itself_even_with_few_samples(count, size):
    features = np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)
    moments = gaussian_moments(features)
    assert 0 <= frechet_distance(*moments, *moments) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_random_covariances_agree_with_the_matrix_square_root(seed):
    covariance1 = random_covariance(24, seed)
    covariance2 = random_covariance(24, seed + 100)
    mean1, mean2 = np.random.default_rng(seed).normal(size=(2, 24))
    root = scipy.linalg.sqrtm(covariance1 @ covariance2).real
    expected = np.square(mean1 - mean2).sum() + np.trace(
        covariance1 + covariance2 - 2 * root
    )
    found = frechet_distance(mean1, covariance1, mean2, covariance2)
    assert found == pytest.approx(expected, abs=1e-8)
    swapped = frechet_distance(mean2, covariance2, mean1, covariance1)
    assert found == pytest.approx(swapped, abs=1e-10)


def test_singular_covariances_give_a_real_distance():
    # Disjoint supports: no overlap at all, so the traces add up.
    covariance1, covariance2 = np.diag([3.0, 1, 0, 0]), np.diag([0.0, 0, 2, 5])
    zeros = np.zeros(4)
    distance = frechet_distance(zeros, covariance1, zeros, covariance2)
    assert distance == pytest.approx(11, abs=1e-10)
    low_rank = random_covariance(100, 0, rank=10)
    other = random_covariance(100, 1, rank=10)
    distance = frechet_distance(np.zeros(100), low_rank, np.zeros(100), other)
    assert 0 < distance < np.trace(low_rank + other)


def test_one_image_repeated_has_the_distance_of_a_point():
    covariance = random_covariance(6, 0)
    point = gaussian_moments(np.ones((9, 6)))
    distance = frechet_distance(np.zeros(6), covariance, *point)
    assert distance == pytest.approx(6 + np.trace(covariance), abs=1e-10)
    assert frechet_distance(*point, *point) == 0


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.eye(2), r"covariance2 must be .*\(3, 3\).*\(2, 2\)"),
        (np.full((3, 3), np.nan), "covariance2 must be finite"),
        (np.triu(np.ones((3, 3))), "covariance2 is not symmetric"),
        (np.diag([1.0, 1, -1]), "covariance2 has the negative eigenvalue -1"),
    ],
)
def test_what_is_no_covariance_is_named(covariance, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), covariance)


def test_means_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(3))
    with pytest.raises(ValueError, match="mean holds NaN"):
        frechet_distance(np.full(3, np.nan), np.eye(3), np.zeros(3), np.eye(3))


def test_few_samples_are_warned_of_in_words():
    assert sample_size_warning(5000, 2048, 2048) is None
    assert "5000 references and 2047 generations" in sample_size_warning(
        5000, 2047, 1280
    )
    assert "fewer than 4096" in sample_size_warning(3000, 5000, 4096)


def loop_kernel_distance(references, generations):
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(rows):
        n = len(rows)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        return np.mean([kernel(rows[i], rows[j]) for i, j in pairs])

    across = np.mean([kernel(x, y) for x in references for y in generations])
    return within(references) + within(generations) - 2 * across


@pytest.fixture(params=[frechet.BLOCK_ELEMENTS, 5 * 23])
def pair(request, monkeypatch):
    """Overlapping but different sets, compared in one block and in many."""
    monkeypatch.setattr(frechet, "BLOCK_ELEMENTS", request.param)
    rng = np.random.default_rng(3)
    return rng.normal(size=(31, 4)), rng.normal(0.7, 0.8, (23, 4))


def test_kernel_distance_equals_a_plain_loop(pair):
    expected = loop_kernel_distance(*pair)
    assert expected > 0.1
    assert kernel_distance(*pair) == pytest.approx(expected, abs=1e-10)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(0)
    distances = [kernel_distance(*rng.normal(size=(2, 40, 8))) for _ in range(200)]
    error = np.std(distances) / np.sqrt(200)
    # The biased estimator would be off by far more than four standard errors.
    assert abs(np.mean(distances)) < 4 * error
    assert min(distances) < 0


@pytest.mark.parametrize("metric", [kernel_distance, manifold_scores])
@pytest.mark.parametrize(
    ("generations", "message"),
    [
        (np.ones((1, 4)), r"generations must have shape .*\(1, 4\)"),
        (np.ones(4), r"generations must have shape .*\(4,\)"),
        (np.ones((9, 3)), "references have 4 features, generations 3"),
        (np.full((9, 4), np.nan), r"9 of 9 generations hold NaN"),
    ],
)
def test_features_that_do_not_fit_are_named(metric, generations, message):
    with pytest.raises(ValueError, match=message):
        metric(np.eye(4).repeat(2, axis=0), generations)


def test_a_set_has_no_kernel_distance_to_itself():
    references = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    assert kernel_distance(references, references) < 1e-6


def test_moments_of_one_image_are_refused():
    with pytest.raises(ValueError, match=r"at least 2.*\(1, 4\)"):
        gaussian_moments(np.ones((1, 4)))


@pytest.mark.parametrize("counts", [(9, 7), (9, 60), (60, 9), (60, 50)])
def test_fewer_images_than_features_take_smaller_products_to_the_same_number(
    rng, counts
):
    """8 images of 3,073 features took 48 CPU seconds of D x D products."""
    features = [rng.normal(i, 1 + i, size=(n, 24)) for i, n in enumerate(counts)]
    gaussians = [
        Gaussian.of_rows(rows)
        if len(rows) <= 24
        else Gaussian(gaussian_moments(rows)[0], covariance=gaussian_moments(rows)[1])
        for rows in features
    ]
    expected = frechet_distance(
        *gaussian_moments(features[0]), *gaussian_moments(features[1])
    )
    assert gaussians[0].distance(gaussians[1]) == pytest.approx(expected, rel=1e-9)
    assert gaussians[1].distance(gaussians[0]) == pytest.approx(expected, rel=1e-9)
