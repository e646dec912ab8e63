"""Ends a training where it begins to copy, by what is measured on the way.

Good is a step at which at most `train.stop_above_copied_share` of what was drawn were
copies. Its checkpoint stays until there is a later good one; at the first step that is not
good the training ends, and what was saved since goes.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

_SHARE = "online_copied_share"


class CopyBound:
    """Where a training stands to its bound.

    Attributes:
      good: the last good step, if there is one.
      ended: why the training ends, or nothing.

    Args:
      bound: the largest share that is good; 1 ends no training.
      rows: what was measured before, in order.
    """

    def __init__(self, bound: float, rows: Sequence[Mapping[str, float]] = ()):
        self.good: list[int] = []
        self.ended = ""
        self._bound = bound
        self._rows = [row for row in rows if bound < 1 and _SHARE in row]

    def go_on_from(self, first_step: int) -> None:
        """Takes up what was measured until a checkpoint, and ended the training after."""
        for row in self._rows:
            step, is_good = int(row["step"]), row[_SHARE] <= self._bound
            if step <= first_step and is_good:
                self.good[:] = [step]
            elif step > first_step and not is_good and self.good:
                self._end(step, row[_SHARE])

    def judge(self, step: int, measured: Mapping[str, float]) -> bool:
        """Takes up what was measured; returns whether the step is good, to be saved.

        Raises:
          ValueError: if it is not, and none before was.
        """
        if self._bound >= 1 or _SHARE not in measured:
            return False
        share = measured[_SHARE]
        if jax.process_count() > 1:  # hosts that disagree would wait for each other
            share = float(multihost_utils.broadcast_one_to_all(np.float32(share)))
        if share <= self._bound:
            self.good[:] = [step]
            return True
        if not self.good:
            raise ValueError(
                f"step {step} is the first that was measured, and {share:.0%} of what is "
                "drawn are copies, more than train.stop_above_copied_share="
                f"{self._bound:g}: measure earlier (train.evaluate_every_steps or "
                "evaluate_every_epochs), lower train.learning_rate, or allow more"
            )
        self._end(step, share)
        return False

    def remove_later(self, checkpoints: ocp.CheckpointManager) -> None:
        """Removes the checkpoints after the last good step."""
        checkpoints.wait_until_finished()
        for step in checkpoints.all_steps():
            if step > self.good[0]:
                checkpoints.delete(step)

    def _end(self, step: int, share: float) -> None:
        self.ended = (
            f"ended: at step {step}, {share:.0%} of what is drawn are copies, more than "
            f"train.stop_above_copied_share={self._bound:g}. The newest checkpoint is that "
            f"of step {self.good[0]}, the last below; the same command with a higher bound "
            "goes on from there"
        )
