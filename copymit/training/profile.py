"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

import logging
from typing import Any

import jax
from etils import epath

logger = logging.getLogger(__name__)

_BEFORE = 2  # steps that are not as the others: buffers are made, the data come late


class Profile:
    """Traces steps into `profile/` of the working directory.

    Args:
      steps: how many; 0 traces none.
      first_step: done before this process started.
    """

    def __init__(self, workdir: epath.Path, steps: int, first_step: int):
        self._folder = workdir / "profile"
        self._first = first_step + _BEFORE + 1
        self._last = first_step + _BEFORE + steps
        self._tracing = False

    def before(self, step: int) -> None:
        """Starts the trace if it begins with this step."""
        if step == self._first <= self._last:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """Ends the trace if this step is its last one."""
        if step == self._last and self._tracing:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace that has begun."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            logger.info(
                "the steps from %d on are traced in %s", self._first, self._folder
            )
