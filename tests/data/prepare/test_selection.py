"""Which examples are tried."""

import numpy as np

from copymit.data.prepare.selection import Cursor, Selector


def test_all_are_taken_in_order():
    selector = Selector(5, None, seed=0)
    np.testing.assert_array_equal(selector.rest(selector.first), range(5))
    assert not len(selector.rest(selector.next_round(Cursor(0, 5, 5, 3))))


def test_bad_ones_are_made_up_for_by_further_rounds():
    selector = Selector(10, 6, seed=0)
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
    selector = Selector(10, 6, seed=0)
    done = selector.first._replace(tried=6, kept=6)
    assert not len(selector.rest(selector.next_round(done)))


def test_a_round_goes_on_where_it_was_left():
    selector = Selector(10, 6, seed=0)
    cursor = selector.first
    np.testing.assert_array_equal(
        selector.rest(cursor._replace(tried=2)), selector.rest(cursor)[2:]
    )
