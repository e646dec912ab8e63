"""The device mesh, and which axis of each array lies on which axis of the mesh.

Mesh axes: `data` (batch only), `fsdp` (batch and parameters) and `tensor` (the inner
width of attention and MLP). One `jit` serves a laptop and a pod.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Parameters smaller than this are replicated: gathering them would cost more than it
# saves. 2**14 elements are 64 KiB.
MIN_SHARDED_SIZE = 2**14

# The first rule whose pattern matches the end of a parameter's path names the dimension
# that the `tensor` axis splits: the outputs (-1) or the inputs (0).
TENSOR_RULES: tuple[tuple[str, int], ...] = (
    (r"(to_q|to_k|to_v|q_proj|k_proj|v_proj)\.kernel", -1),
    (r"(to_out\.0|out_proj)\.kernel", 0),
    (r"(net\.0\.proj|fc1)\.kernel", -1),
    (r"(net\.2|fc2)\.kernel", 0),
)

_DAY_MS = 24 * 3600 * 1000  # a host that is lost ends the wait much earlier
_barriers = itertools.count()  # no name may come twice


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Arranges all devices of all hosts in a mesh.

    Args:
      data, fsdp, tensor: devices along each axis; one of them may be -1, "the rest".
    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    return jax.make_mesh(
        mesh_sizes(jax.device_count(), data, fsdp, tensor),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    )


def mesh_sizes(
    count: int, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> tuple[int, int, int]:
    """Returns how many devices of `count` lie along each axis; see `make_mesh`."""
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // known if known > 0 else 0
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {count} "
            "devices: the sizes must multiply to that number (one of them may be -1)"
        )
    return sizes[0], sizes[1], sizes[2]


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point of this name.

    Asks the coordination service, not the devices: a collective of gloo gives up after
    30 s, before one host has compiled or written what the others wait for.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost  # seconds, for several hosts alone

        wait = multihost.get_barrier_sync_fn()
        wait(key=f"{name} {next(_barriers)}", timeout_ms=_DAY_MS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits axis 0 of a batch over all devices that do not share an example."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards() -> int:
    """Returns among how many devices a batch is split where code is traced; 1 by default.

    `jax.set_mesh` says so.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get("data", 1) * shape.get("fsdp", 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """Keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Chooses the axes of one parameter: tensor by rule, fsdp on the largest other one.

    A dimension that does not divide by the axis stays whole.
    """
    axes: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec(*axes)
    for pattern, dimension in TENSOR_RULES:
        if re.search(pattern + "$", name):
            if shape[dimension] % mesh.shape["tensor"] == 0:
                axes[dimension] = "tensor"
            break
    free = [
        d
        for d, size in enumerate(shape)
        if axes[d] is None and size % mesh.shape["fsdp"] == 0
    ]
    if free:
        axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*axes)


def params_sharding(shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Chooses the sharding of every parameter of a flat table."""
    return {
        name: NamedSharding(mesh, param_spec(name, value.shape, mesh))
        for name, value in shapes.items()
    }
