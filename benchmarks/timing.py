"""How the benchmarks time: best of several calls, after a warm-up.

`BENCH_CLOCK=cpu` has them count the seconds of CPUs that the process takes, which on a
machine with other work say more than those of the clock on the wall.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# For the process of one side, also where a GPU is.
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


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
    by_cpu = os.environ.get("BENCH_CLOCK") == "cpu"
    clock = time.process_time if by_cpu else time.perf_counter
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        started = clock()
        jax.block_until_ready(function())
        times.append(clock() - started)
    return min(times)
