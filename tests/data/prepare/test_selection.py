"""Which examples are tried."""

import numpy as np
from scipy import stats

from copymit.data.draw import draw_key, draw_order
from copymit.data.prepare.selection import (
    Cursor,
    Selector,
    as_good,
    plan_shards,
    shard_of,
    smallest,
)


def test_all_are_taken_in_order():
    selector = Selector([f"{i}" for i in range(5)], None, seed=0)
    np.testing.assert_array_equal(selector.rest(selector.first), range(5))
    assert not len(selector.rest(selector.next_round(Cursor(0, 5, 5, 3))))


def test_bad_ones_are_made_up_for_by_further_rounds():
    selector = Selector([f"{i}" for i in range(10)], 6, seed=0)
    first = selector.rest(selector.first)
    assert len(first) == 6
    assert list(first) == sorted(first)
    second = selector.next_round(selector.first._replace(tried=6, kept=4))
    assert len(selector.rest(second)) == 2
    third = selector.next_round(second._replace(tried=2, kept=4))
    tried = [*first, *selector.rest(second), *selector.rest(third)]
    assert sorted(tried) == list(range(10))
    assert not len(selector.rest(selector.next_round(third._replace(kept=5))))


def test_nothing_more_is_tried_when_enough_are_good():
    selector = Selector([f"{i}" for i in range(10)], 6, seed=0)
    done = selector.first._replace(tried=6, kept=6)
    assert not len(selector.rest(selector.next_round(done)))


def test_a_round_goes_on_where_it_was_left():
    selector = Selector([f"{i}" for i in range(10)], 6, seed=0)
    cursor = selector.first
    np.testing.assert_array_equal(
        selector.rest(cursor._replace(tried=2)), selector.rest(cursor)[2:]
    )


def keys_of(count, seed=0):
    return [draw_key(seed, f"{i:05d}.jpg") for i in range(count)]


def test_a_place_in_the_draw_depends_on_seed_and_id_alone():
    assert keys_of(3) == keys_of(5)[:3]
    assert keys_of(3) != keys_of(3, seed=1)
    assert len(set(keys_of(10_000))) == 10_000


def test_every_example_is_as_likely_to_be_drawn():
    # The first bits of the keys: 16 equally likely values of 16,000 keys.
    counts = np.bincount([int(key[:1], 16) for key in keys_of(16_000)], minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_smallest_are_the_same_however_parts_are_joined():
    keys = keys_of(90)
    whole = as_good(keys, range(90), 90)
    parts = [as_good(keys[i::3], range(i, 90, 3), 30) for i in range(3)]
    expected = sorted(keys)[:20]
    for joined in (
        smallest([whole], 20),
        smallest(parts, 20),
        smallest([smallest(parts[:2], 20), smallest([], 20), parts[2]], 20),
    ):
        assert [bytes(key) for key in joined.keys] == expected
        assert [keys[size] for size in joined.sizes] == expected
        assert joined.num_tried == 90


def test_files_are_closed_when_they_are_large_enough():
    good = as_good(keys_of(7), [10] * 7, 9)
    plan = plan_shards(good, 7, 25)
    assert plan.lengths == [3, 3, 1]
    places = [shard_of(bytes(key), plan) for key in good.keys]
    assert places == [0, 0, 0, 1, 1, 1, 2]
    assert shard_of(b"f" * 24, plan) is None
    # Without a number, what comes after the last good one still has a place.
    assert shard_of(b"f" * 24, plan_shards(good, None, 25)) == 2


def test_too_few_good_examples_leave_nothing_to_write():
    assert plan_shards(as_good(keys_of(3), [1] * 3, 5), 4, 100).lengths == []


def test_the_draw_does_not_depend_on_the_order_of_arrival_nor_on_other_examples():
    ids = [f"{i:05d}.jpg" for i in range(200)]
    drawn = [ids[i] for i in draw_order(3, ids)]
    turned = ids[::-1]
    assert [turned[i] for i in draw_order(3, turned)] == drawn
    fewer = [name for name in drawn if name < "00100"]
    assert [ids[:100][i] for i in draw_order(3, ids[:100])] == fewer
    assert [ids[i] for i in draw_order(4, ids)] != drawn
    assert [ids[i] for i in draw_order(3, ids, "duplicated")] != drawn
    first, second = (Selector(order, 10, 3) for order in (ids, turned))
    chosen = {ids[i] for i in first.rest(first.first)}
    assert chosen == {turned[i] for i in second.rest(second.first)}


def test_a_name_is_drawn_alike_however_its_accents_are_composed():
    assert draw_key(0, "caf\u00e9.png") == draw_key(0, "cafe\u0301.png")
