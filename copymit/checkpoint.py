"""Checkpoints of a run: saved in the background, complete or not there at all.

`checkpoints/STEP/` holds the items `params`, `ema`, `optimizer` and `position`; a
reader may restore one item without the others. Networks that do not train are in
`frozen/NETWORK/`, once for all steps; an older copymit had them in `params`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from copymit.storage import absolute


def open_checkpoints(
    workdir: epath.PathLike, *, keep: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a working directory, on disk or in a bucket.

    Args:
      keep: how many of the newest checkpoints stay.
    """
    return ocp.CheckpointManager(
        absolute(workdir) / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        ),
    )


def save_checkpoint(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any], position: dict
) -> None:
    """Starts saving; the arrays may be overwritten as soon as this returns.

    Args:
      step: number of completed training steps.
      items: pytrees of global arrays by item name; an empty one is not written.
      position: what is not an array, as JSON: the step that the data go on from.
    """
    present = {k: ocp.args.StandardSave(v) for k, v in items.items() if v}
    manager.save(
        step,
        args=ocp.args.Composite(position=ocp.args.JsonSave(position), **present),
        force=True,
    )


def restore_checkpoint(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any]
) -> dict[str, Any]:
    """Restores items straight into the shardings of their abstract arrays.

    Args:
      items: for each item wanted, a pytree of `jax.ShapeDtypeStruct` with shardings;
        `frozen` are networks that did not train.
    Raises:
      ValueError: if the checkpoint holds another model; names the first parameters
        that differ.
    """
    wanted = {k: v for k, v in items.items() if v}
    frozen = wanted.pop("frozen", {})
    inside = {
        name
        for name in _saved_networks(manager, step) - items["params"].keys()
        if name in frozen
    }
    wanted["params"] = items["params"] | {name: frozen[name] for name in inside}
    for name in ("params", "ema"):  # always in this order: the first fault is named
        if name in wanted:
            _check_same_model(manager, step, name, wanted[name])
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            **{k: ocp.args.StandardRestore(v) for k, v in wanted.items()}
        ),
    )
    found = {k: restored[k] if k in wanted else v for k, v in items.items()}
    if frozen:
        beside = {name: frozen[name] for name in frozen.keys() - inside}
        found["frozen"] = restore_frozen(manager.directory.parent, beside) | {
            name: found["params"].pop(name) for name in inside
        }
    return found


def save_frozen(workdir: epath.PathLike, networks: Mapping[str, Any]) -> None:
    """Saves networks that do not train, and returns when they are there."""
    with ocp.StandardCheckpointer() as checkpointer:
        for name, params in networks.items():
            checkpointer.save(absolute(workdir) / "frozen" / name, params, force=True)


def has_frozen(workdir: epath.PathLike, names: Iterable[str]) -> bool:
    """Returns whether all these networks were saved."""
    return all((absolute(workdir) / "frozen" / name).exists() for name in names)


def restore_frozen(
    workdir: epath.PathLike, networks: Mapping[str, Any]
) -> dict[str, Any]:
    """Restores networks that do not train into the shardings of their abstract arrays.

    Raises:
      ValueError: if one was not saved, or another model's was.
    """
    restored = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for name, wanted in networks.items():
            folder = absolute(workdir) / "frozen" / name
            if not folder.exists():
                raise ValueError(
                    f"{folder} is missing: the run's checkpoints need it. Copy the whole "
                    "working directory"
                )
            _check_same_shapes(folder, checkpointer.metadata(folder), wanted)
            restored[name] = checkpointer.restore(folder, wanted)
    return restored


def _saved_networks(manager: ocp.CheckpointManager, step: int) -> set[str]:
    folder = manager.directory / str(step) / "params"
    if not folder.exists():
        return set()
    with ocp.StandardCheckpointer() as checkpointer:
        return set(checkpointer.metadata(folder).item_metadata.tree)


def _check_same_model(manager, step: int, item: str, wanted) -> None:
    whole = manager.directory / str(step)
    directory = whole / item
    if not (whole / "params").exists() or not (whole / "position").exists():
        raise ValueError(
            f"{whole} is not a whole checkpoint: something was removed from it, or a copy "
            "of it was interrupted. Copy it again, or remove it, and the newest of the "
            "others is used"
        )
    if not directory.exists():
        raise ValueError(
            f"{directory} is missing: the checkpoint was made by another config than "
            "this one (with another train.ema_decay?). Use the config that it was "
            "trained with, or another --workdir"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        _check_same_shapes(directory, checkpointer.metadata(directory), wanted)


def _check_same_shapes(directory: epath.Path, metadata, wanted) -> None:
    saved = metadata.item_metadata.tree

    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            ".".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape)
            for path, leaf in leaves
        }

    saved, expected = shapes(saved), shapes(wanted)
    differ = [
        f"{name} (config {expected.get(name, 'none')}, checkpoint "
        f"{saved.get(name, 'none')})"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if differ:
        raise ValueError(
            f"{directory} is a checkpoint of another model than the config's: "
            f"{len(differ)} parameters differ: {', '.join(differ[:5])}. Use the config "
            "that it was trained with, or another --workdir"
        )
