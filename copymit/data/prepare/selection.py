"""Which examples of a source are tried, in which order, until enough are good.

In: the ids, how many are wanted, a seed. Out: indices, and where to go on
after an interruption. And the same without a list of all: each example has a key, and
those with the smallest keys are taken.
"""

import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from copymit.data.draw import KEY_BYTES, draw_order

_KEY_DTYPE = np.dtype(f"S{2 * KEY_BYTES}")
_LAST_KEY = b"f" * 2 * KEY_BYTES


class Cursor(NamedTuple):
    """How far a selection has come.

    Examples are drawn in rounds: first as many as are wanted, then as many as those
    that turned out bad. Each round is read in the order of the source, since tables and
    tar files are quick to read in that order alone.

    Attributes:
      start, stop: the current round, as positions in the draw.
      tried: how many of the round were tried.
      kept: how many were good, in all rounds.
    """

    start: int
    stop: int
    tried: int
    kept: int


class Selector:
    """Draws `wanted` of the examples, or takes all of them in order.

    Args:
      wanted: None takes all.
      seed: of the draw; a smaller draw is contained in a larger one.
    """

    def __init__(self, example_ids: Sequence[str], wanted: int | None, seed: int):
        self.wanted = wanted
        self._draw = (
            np.arange(len(example_ids))
            if wanted is None
            else draw_order(seed, example_ids)
        )

    @property
    def first(self) -> Cursor:
        """Where a selection begins."""
        stop = len(self._draw) if self.wanted is None else self.wanted
        return Cursor(0, min(stop, len(self._draw)), 0, 0)

    def rest(self, cursor: Cursor) -> np.ndarray:
        """Returns what is left of the cursor's round; nothing if all is done."""
        return np.sort(self._draw[cursor.start : cursor.stop])[cursor.tried :]

    def next_round(self, cursor: Cursor) -> Cursor:
        """Returns the round that makes up for the bad ones of the rounds before."""
        missing = 0 if self.wanted is None else self.wanted - cursor.kept
        stop = min(cursor.stop + missing, len(self._draw))
        return Cursor(cursor.stop, stop, 0, cursor.kept)


class Good(NamedTuple):
    """The good examples with the smallest keys, of some part of all.

    Attributes:
      keys: (N,) of `draw_key`, ascending.
      sizes: (N,) int64 bytes of their records.
      num_tried: how many were tried, the bad ones too.
    """

    keys: np.ndarray
    sizes: np.ndarray
    num_tried: int


class Plan(NamedTuple):
    """Which examples are taken, and which file each goes to.

    Attributes:
      ends: for each file the largest key in it, ascending; larger keys are not taken.
      lengths: how many examples are in each.
      num_tried: of how many they were chosen.
    """

    ends: list[bytes]
    lengths: list[int]
    num_tried: int


def as_good(keys: Sequence[bytes], sizes: Sequence[int], num_tried: int) -> Good:
    """Returns one part; its examples may come in any order."""
    part = Good(np.array(keys, _KEY_DTYPE), np.array(sizes, np.int64), num_tried)
    return smallest([part], None)


def smallest(parts: Iterable[Good], wanted: int | None) -> Good:
    """Returns the `wanted` smallest of all parts; None keeps all.

    Parts may be joined in any order and grouping.
    """
    # Beam also joins no parts at all.
    parts = [Good(np.empty(0, _KEY_DTYPE), np.empty(0, np.int64), 0), *parts]
    keys = np.concatenate([part.keys for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    order = np.argsort(keys, kind="stable")[:wanted]
    return Good(keys[order], sizes[order], sum(part.num_tried for part in parts))


def plan_shards(good: Good, wanted: int | None, shard_bytes: int) -> Plan:
    """Divides the taken examples, in the order of their keys, among files.

    A file is closed when it has grown to `shard_bytes`. With fewer good examples than
    wanted there is nothing to write.
    """
    if len(good.keys) < (wanted or 1):
        return Plan([], [], good.num_tried)
    totals = np.cumsum(good.sizes)
    stops = [0]
    while stops[-1] < len(totals):
        written = totals[stops[-1] - 1] if stops[-1] else 0
        stop = np.searchsorted(totals, written + shard_bytes) + 1
        stops.append(min(int(stop), len(totals)))
    ends = [bytes(good.keys[stop - 1]) for stop in stops[1:]]
    if wanted is None:
        # The bad ones behind the last good one are to be found, too.
        ends[-1] = _LAST_KEY
    return Plan(ends, np.diff(stops).tolist(), good.num_tried)


def shard_of(key: bytes, plan: Plan) -> int | None:
    """Returns the number of the file that an example goes to, or None if to none."""
    number = bisect.bisect_left(plan.ends, key)
    return number if number < len(plan.ends) else None
