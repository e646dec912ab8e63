"""How the benchmarks time: best of several calls, after a warm-up."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Row(NamedTuple):
    """One comparison; `ratio` above 1 means that copymit is faster.

    Attributes:
      name: what is measured, with its size.
      seconds: of copymit's formulation.
      peer: the other one.
      peer_seconds: of that.
    """

    name: str
    seconds: float
    peer: str
    peer_seconds: float

    @property
    def ratio(self) -> float:
        """Speed relative to the peer."""
        return self.peer_seconds / self.seconds


def best_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Returns the least time of a call in seconds; waits for jax to finish."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - started)
    return min(times)
