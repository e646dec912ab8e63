"""Which example is drawn when: exact counts by epoch, or independent weighted draws."""

import itertools

import numpy as np
import pytest
from scipy import stats

from copymit.data.schedule import (
    check_duplication_mode,
    draw_generator,
    example_at,
    examples_of_step,
    make_schedule,
)

# Enough draws an epoch for index_shuffle, which takes milliseconds on short ranges.
WEIGHTS = np.array([1] * 90 + [10] * 10)


def _epoch(schedule, number: int) -> np.ndarray:
    total = schedule.epoch_draws
    return np.array([example_at(schedule, number * total + i) for i in range(total)])


def test_an_epoch_visits_each_example_exactly_weight_times():
    schedule = make_schedule(WEIGHTS, "epochs", seed=3)
    assert schedule.epoch_draws == WEIGHTS.sum() == 190
    for number in (0, 1, 1000):
        np.testing.assert_array_equal(np.bincount(_epoch(schedule, number)), WEIGHTS)


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = [
        tuple(_epoch(make_schedule(WEIGHTS, "epochs", seed), number))
        for seed, number in itertools.product((0, 1), (0, 1, 2))
    ]
    assert len(set(orders)) == len(orders)
    assert all(order != tuple(sorted(order)) for order in orders)


def test_every_order_of_an_epoch_is_equally_likely():
    schedule = make_schedule(np.ones(3, np.int64), "epochs", seed=0)
    orders = [tuple(_epoch(schedule, number)) for number in range(48)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 48
    assert stats.chisquare(counts).pvalue > 1e-3


def test_positions_in_an_epoch_are_uniform_and_neighbours_unrelated():
    n, epochs = 100, 1000
    schedule = make_schedule(np.ones(n, np.int64), "epochs", seed=0)
    first, second = (
        np.array([example_at(schedule, number * n + i) for number in range(epochs)])
        for i in (0, 1)
    )
    assert stats.chisquare(np.bincount(first, minlength=n)).pvalue > 1e-3
    distances = np.bincount((second - first) % n, minlength=n)
    assert distances[0] == 0
    assert stats.chisquare(distances[1:]).pvalue > 1e-3


def test_draws_with_replacement_are_proportional_to_the_weights():
    schedule = make_schedule(WEIGHTS, "replacement", seed=0)
    drawn = np.array([example_at(schedule, i) for i in range(10_000)])
    counts = np.bincount(drawn, minlength=len(WEIGHTS))
    expected = WEIGHTS / WEIGHTS.sum() * len(drawn)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_consecutive_draws_with_replacement_are_independent():
    schedule = make_schedule(np.array([1, 2, 3, 4]), "replacement", seed=1)
    drawn = np.array([example_at(schedule, i) for i in range(10_000)])
    for lag in (1, 2):
        table = np.zeros((4, 4))
        np.add.at(table, (drawn[:-lag:2], drawn[lag::2][: len(drawn[:-lag:2])]), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_with_replacement_an_epochs_length_says_nothing_about_its_counts():
    schedule = make_schedule(np.ones(100, np.int64), "replacement", seed=0)
    counts = np.bincount(_epoch(schedule, 0), minlength=100)
    assert counts.max() > 1
    assert counts.min() == 0


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_a_step_does_not_depend_on_where_the_run_started(sampling):
    schedule = make_schedule(WEIGHTS, sampling, seed=0)
    steps = [examples_of_step(schedule, step, 8) for step in range(12)]
    again = make_schedule(WEIGHTS, sampling, seed=0)
    np.testing.assert_array_equal(examples_of_step(again, 11, 8), steps[11])
    # The same draws in other batches: only the number of the draw counts.
    draws = np.concatenate(steps)
    np.testing.assert_array_equal(examples_of_step(again, 2, 32), draws[64:96])


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_another_seed_gives_other_draws(sampling):
    one, other = (make_schedule(WEIGHTS, sampling, seed) for seed in (0, 1))
    assert (examples_of_step(one, 0, 64) != examples_of_step(other, 0, 64)).any()


def test_generators_of_draws_are_reproducible_and_do_not_overlap():
    streams = {
        (seed, draw, purpose): tuple(
            draw_generator(seed, draw, purpose).integers(2**63, size=8).tolist()
        )
        for seed in (0, 1)
        for draw in (0, 1, 2, 10**12)
        for purpose in ("schedule", "example")
    }
    assert len(set(itertools.chain(*streams.values()))) == 8 * len(streams)
    again = draw_generator(1, 10**12, "example").integers(2**63, size=8)
    assert tuple(again.tolist()) == streams[1, 10**12, "example"]


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -2]])
def test_weights_without_meaning_are_refused(weights):
    with pytest.raises(ValueError, match="a weight of at least 1"):
        make_schedule(np.array(weights, np.int64), "epochs", seed=0)


def test_an_unknown_sampling_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'shuffle' is not known.*epochs, replacement"
    ):
        make_schedule(WEIGHTS, "shuffle", seed=0)


def test_an_epoch_longer_than_can_be_shuffled_is_refused():
    weights = np.full(5000, 1_000_000)
    with pytest.raises(ValueError, match=r"epoch of 5000000000 draws .*'replacement'"):
        make_schedule(weights, "epochs", seed=0)
    assert 0 <= example_at(make_schedule(weights, "replacement", seed=0), 7) < 5000


def test_exact_counts_are_refused_where_draws_are_independent():
    for mode, sampling in (
        ("counts", "epochs"),
        ("weights", "epochs"),
        ("weights", "replacement"),
    ):
        check_duplication_mode(mode, sampling)
    with pytest.raises(ValueError, match=r"'counts' promises .*set data\.sampling='ep"):
        check_duplication_mode("counts", "replacement")
    with pytest.raises(ValueError, match=r"'exact' is not known: .*weights, counts"):
        check_duplication_mode("exact", "epochs")


@pytest.mark.parametrize(
    ("weights", "law"), [(np.ones(5, np.int64), "epochs"), (WEIGHTS, "replacement")]
)
def test_the_published_sampling_shuffles_where_nothing_is_duplicated(weights, law):
    published = make_schedule(weights, "published", seed=2)
    assert published.sampling == law
    drawn = [example_at(published, i) for i in range(50)]
    expected = make_schedule(weights, law, seed=2)
    assert drawn == [example_at(expected, i) for i in range(50)]
