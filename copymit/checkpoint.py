"""Checkpoints of a run: saved in the background, complete or not there at all.

`checkpoints/STEP/` holds the items `params`, `ema`, `optimizer` and `position`; a
reader may restore one item without the others. Networks that do not train are in
`frozen/NETWORK/`, once for all steps; an older copymit had them in `params`, and the two
halves of a layer's outputs in one axis.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers as policies

from copymit.storage import absolute, check_room, writing


def open_checkpoints(
    workdir: epath.PathLike,
    *,
    keep: int = 1,
    also: Sequence[int] = (),
    read_only: bool = False,
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a working directory, on disk or in a bucket.

    Args:
      keep: how many of the newest checkpoints stay.
      also: steps whose checkpoints stay, too; a list may change.
    """
    newest = policies.LatestN(n=None if read_only else keep)
    kept = policies.AnyPreservationPolicy([newest, _Listed(also)])
    return ocp.CheckpointManager(
        absolute(workdir) / "checkpoints",
        options=ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        ),
    )


class _Listed(NamedTuple):
    """Orbax's policy of keeping the checkpoints of these steps."""

    steps: Sequence[int]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Says of each checkpoint whether it stays."""
        del context
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


def save_checkpoint(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any], position: dict
) -> None:
    """Starts saving; the arrays may be overwritten as soon as this returns.

    Args:
      step: number of completed training steps.
      items: pytrees of global arrays by item name; an empty one is not written.
      position: what is not an array, as JSON: the step that the data go on from.
    Raises:
      FullDiskError: before anything is written, if there is no room for it.
    """
    present = {name: item for name, item in items.items() if item}
    manager.wait_until_finished()  # now the room that is left is known
    check_room(epath.Path(manager.directory) / str(step), _num_bytes(present))
    args = {name: ocp.args.StandardSave(item) for name, item in present.items()}
    manager.save(
        step,
        args=ocp.args.Composite(position=ocp.args.JsonSave(position), **args),
        force=True,
    )


@contextlib.contextmanager
def closing_checkpoints(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Waits for the last checkpoint at the end; nothing of an unfinished one stays.

    Raises:
      FullDiskError: if a checkpoint found no room, at whatever step that came to light.
    """
    try:
        with writing(manager.directory):
            yield
            manager.close()
    except BaseException:
        with contextlib.suppress(Exception):  # which says the same once more
            manager.close()
        _remove_unfinished(epath.Path(manager.directory))
        raise


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
    saved = _saved_shapes(manager.directory / str(step) / "params")
    inside = {name.partition(".")[0] for name in saved} - items["params"].keys()
    inside &= frozen.keys()
    wanted["params"] = items["params"] | {name: frozen[name] for name in inside}
    stored = {k: _as_saved(v, saved) for k, v in wanted.items()}
    for name in ("params", "ema"):  # always in this order: the first fault is named
        if name in stored:
            _check_same_model(manager, step, name, stored[name])
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            **{k: ocp.args.StandardRestore(v) for k, v in stored.items()}
        ),
    )
    found = {
        k: jax.tree.map(_reshaped, restored[k], wanted[k]) if k in wanted else v
        for k, v in items.items()
    }
    if frozen:
        beside = {name: frozen[name] for name in frozen.keys() - inside}
        found["frozen"] = restore_frozen(manager.directory.parent, beside) | {
            name: found["params"].pop(name) for name in inside
        }
    return found


def save_frozen(workdir: epath.PathLike, networks: Mapping[str, Any]) -> None:
    """Saves networks that do not train, and returns when they are there.

    Raises:
      FullDiskError: if there is no room for them.
    """
    if not networks:
        return
    folder = absolute(workdir) / "frozen"
    _remove_unfinished(folder)  # of a start that was ended
    check_room(folder, _num_bytes(networks))
    with writing(folder), ocp.StandardCheckpointer() as checkpointer:
        for name, params in networks.items():
            checkpointer.save(folder / name, params, force=True)


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
            stored = _as_saved(wanted, _saved_shapes(folder))
            _check_same_shapes(folder, stored)
            found = checkpointer.restore(folder, stored)
            restored[name] = jax.tree.map(_reshaped, found, wanted)
    return restored


def _num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _remove_unfinished(folder: epath.Path) -> None:
    """Removes what Orbax has begun to write; the first host does."""
    if jax.process_index() == 0 and folder.exists():
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
            with contextlib.suppress(OSError):  # what a thread of it still adds to
                path.rmtree(missing_ok=True)


def _saved_shapes(folder: epath.Path) -> dict[str, tuple[int, ...]]:
    """Lists what lies in a folder by dotted name; nothing if it is not there."""
    if not folder.exists():
        return {}
    with ocp.StandardCheckpointer() as checkpointer:
        return _shapes(checkpointer.metadata(folder).item_metadata.tree)


def _as_saved(wanted: Any, saved: Mapping[str, tuple[int, ...]]) -> Any:
    """Describes arrays with their last two axes in one where they were saved so.

    Args:
      saved: shapes by the ends of names; moments are saved as their parameters are.
    """

    def one(path, x):
        joined = (*x.shape[:-2], math.prod(x.shape[-2:]))
        names = (_dotted(path[-length:]) for length in (1, 2))
        if x.ndim < 2 or joined not in [saved.get(name) for name in names]:
            return x
        spec = (*x.sharding.spec, *[None] * x.ndim)[: x.ndim]
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*spec[:-2], spec[-1]))
        return jax.ShapeDtypeStruct(joined, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(one, wanted)


def _reshaped(found: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    if found.shape == wanted.shape:
        return found
    reshape = functools.partial(jnp.reshape, shape=wanted.shape)
    return jax.jit(reshape, out_shardings=wanted.sharding)(found)


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
    _check_same_shapes(directory, wanted)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_dotted(path): tuple(leaf.shape) for path, leaf in leaves}


def _dotted(path) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)


def _check_same_shapes(directory: epath.Path, wanted) -> None:
    saved, expected = _saved_shapes(directory), _shapes(wanted)
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
