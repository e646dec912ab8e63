"""Which examples of a source are tried, in which order, until enough are good.

In: how many there are, how many are wanted, a seed. Out: indices, and where to go on
after an interruption.
"""

from typing import NamedTuple

import numpy as np


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
    """Draws `wanted` of `available` examples, or takes all of them in order.

    Args:
      wanted: None takes all.
      seed: of the draw; a smaller draw is contained in a larger one.
    """

    def __init__(self, available: int, wanted: int | None, seed: int):
        self.wanted = wanted
        self._draw = np.arange(available)
        if wanted is not None:
            self._draw = np.random.Generator(np.random.PCG64(seed)).permutation(
                available
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
