import numpy as np
import pytest

from copymit.embedding.store import unit_rows
from copymit.scores.cmmd import SCALE, clip_maximum_mean_discrepancy
from copymit.scores.frechet import (
    Gaussian,
    frechet_distance,
    gaussian_moments,
    kernel_distance,
)
from copymit.scores.jackknife import (
    MAX_GROUPS,
    frechet_replicates,
    group_clusters,
    jackknife_ci,
    kernel_replicates,
    share_jackknife_ci,
)


@pytest.fixture
def sets(rng):
    return rng.normal(size=(45, 6)), rng.normal(0.4, 1.3, size=(40, 6))


GROUPS = group_clusters(np.arange(40) // 4, 40, seed=0)


def assert_equal_up_to_a_constant(found, expected):
    np.testing.assert_allclose(
        found - found.mean(), expected - np.mean(expected), atol=1e-9
    )


@pytest.mark.parametrize("size", [6, 60])
@pytest.mark.parametrize("num_references", [10, 45])
def test_frechet_distances_without_each_group_are_those_of_the_rest(
    rng, size, num_references
):
    references = rng.normal(size=(num_references, size))
    generations = rng.normal(0.4, 1.3, size=(40, size))
    moments = gaussian_moments(references)
    expected = [
        frechet_distance(*moments, *gaussian_moments(generations[~group]))
        for group in GROUPS
    ]
    fitted = [Gaussian(moments[0], covariance=moments[1])]
    if num_references <= size:
        fitted.append(Gaussian.of_rows(references))
    for gaussian in fitted:
        found = frechet_replicates(gaussian, generations, GROUPS)
        assert_equal_up_to_a_constant(found, expected)


def test_kernel_distances_without_each_group_are_those_of_the_rest(sets):
    references, generations = sets
    expected = [kernel_distance(references, generations[~group]) for group in GROUPS]
    found = kernel_replicates("cubic", references, generations, GROUPS)
    assert_equal_up_to_a_constant(found, expected)
    units = unit_rows(references), unit_rows(generations)
    expected = [
        clip_maximum_mean_discrepancy(units[0], units[1][~group]) for group in GROUPS
    ]
    found = SCALE * kernel_replicates("gaussian", *units, GROUPS)
    assert_equal_up_to_a_constant(found, expected)


def test_groups_are_few_and_keep_clusters_together():
    clusters = np.arange(300) // 3
    groups = group_clusters(clusters, 300, seed=0)
    assert groups.shape == (MAX_GROUPS, 300)
    assert (groups.sum(0) == 1).all()
    for group in groups:
        assert set(clusters[group]).isdisjoint(clusters[~group])


def test_the_interval_of_a_mean_is_that_of_students_t(rng):
    values = rng.normal(size=12)
    without = np.array([np.delete(values, i).mean() for i in range(12)])
    low, high = jackknife_ci(values.mean(), without)
    reach = 2.200985 * values.std(ddof=1) / 12**0.5
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach))


def test_a_share_that_no_group_changes_has_the_exact_interval():
    assert share_jackknife_ci(1.0, np.ones(5), 12) == pytest.approx(
        (0.025 ** (1 / 12), 1)
    )
    low, high = share_jackknife_ci(1.0, np.array([1.0, 0.9, 1.0]), 12)
    assert low < 0.9 < high == 1


def test_frechet_intervals_cover_what_other_generations_would_give(rng):
    """Of as many clusters: the bias of few images is in the number, and stays."""
    moments = gaussian_moments(rng.normal(size=(200, 4)))
    references = Gaussian(moments[0], covariance=moments[1])
    clusters = np.repeat(np.arange(30), 3)
    groups = group_clusters(clusters, 90, seed=0)

    def generate():
        return rng.normal(0.3, 1, (30, 4))[clusters] + rng.normal(0, 0.2, (90, 4))

    drawn = [generate() for _ in range(200)]
    distances = np.array(
        [references.distance(_gaussian_of(generations)) for generations in drawn]
    )
    covered = 0
    for generations, distance in zip(drawn, distances, strict=True):
        replicates = frechet_replicates(references, generations, groups)
        low, high = jackknife_ci(distance, replicates, (0, np.inf))
        covered += low <= distances.mean() <= high
    # 95 % of 200 and three standard deviations; the jackknife may cover more.
    assert covered >= 180


def _gaussian_of(rows):
    mean, covariance = gaussian_moments(rows)
    return Gaussian(mean, covariance=covariance)
