"""The state of a run in its checkpoints.

Networks that do not train are saved once beside them. Where the step does not need one,
it is not on the devices either, and is read again when pictures are made.
"""

from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from copymit.checkpoint import (
    has_frozen,
    restore_checkpoint,
    restore_frozen,
    save_checkpoint,
    save_frozen,
)
from copymit.models.assembly import ModelParams
from copymit.models.lora import assemble
from copymit.sharding import wait_for_all
from copymit.training.state import TrainState


def restore_state(
    checkpoints: ocp.CheckpointManager, step: int, abstract: TrainState
) -> TrainState:
    """Restores the state as it was after a step."""
    items = _items(abstract) | {"frozen": abstract.frozen}
    restored = restore_checkpoint(checkpoints, step, items)
    return TrainState(
        step=restored["optimizer"]["step"],
        params=restored["params"],
        frozen=restored["frozen"],
        opt_state=restored["optimizer"]["state"],
        ema=restored["ema"],
    )


def save_state(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState
) -> None:
    """Starts saving what a step has changed."""
    save_checkpoint(
        checkpoints, step, _items(state), {"step": step, "next_batch": step}
    )


def keep_frozen(workdir: epath.Path, frozen: ModelParams, *, new: bool) -> None:
    """Saves the networks that do not train, if they are not there.

    Args:
      new: whether the run is; what lies there is then of one that never saved a step.
    """
    there = has_frozen(workdir, frozen) and not new
    wait_for_all("frozen networks are looked for")
    if not there:
        save_frozen(workdir, frozen)


def make_networks(
    workdir: epath.Path, frozen: dict[str, Any]
) -> Callable[[TrainState], ModelParams]:
    """Returns what gives the networks to generate with, those of the moving average.

    Args:
      frozen: abstract networks that do not train, all of them.
    """

    def networks(state: TrainState) -> ModelParams:
        missing = {k: v for k, v in frozen.items() if k not in state.frozen}
        found = state.frozen | restore_frozen(workdir, missing)
        return assemble(state.ema or state.params, found)

    return networks


def _items(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "ema": state.ema,
        "optimizer": {"state": state.opt_state, "step": state.step},
    }
