"""Weights in and out of PyTorch's layout: named arrays <-> the variables of a module.

Module attributes are named as the published parameters, so a name is a path joined by
dots and only the leaf and the axis order differ:

| flax                         | torch                          |
|------------------------------|--------------------------------|
| `kernel` (*window, in, out)  | `weight` (out, in, *window)    |
| `scale`, `embedding`         | `weight`                       |
| `mean`, `var` (batch norm)   | `running_mean`, `running_var`  |
| anything else                | the same                       |
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TORCH_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_MAX_LISTED_PROBLEMS = 10


def load_torch_state(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    ignore: Sequence[str] = (),
) -> None:
    """Replaces every parameter and batch statistic of `module` by a published one.

    Values are copied, cast to the dtype and put on the sharding of what they replace;
    an abstract module (`nnx.eval_shape`) becomes concrete. A failure changes nothing.

    Args:
      ignore: regular expressions, searched in the names of tensors that the module has
        no place for, such as `position_ids$` or `num_batches_tracked$`.
    Raises:
      ValueError: if names are missing or unused, or shapes differ; lists them.
    """
    variables = _torch_variables(module)
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")
    problems = [f"missing {name}" for name in variables if name not in tensors]
    problems += [
        f"unused {name}"
        for name in tensors
        if name not in variables and not ignored.search(name)
    ]
    for name, (leaf, variable) in variables.items():
        shape = _torch_shape(leaf, variable.shape)
        if name in tensors and tensors[name].shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, needs {shape}")
    if problems:
        raise ValueError(_describe(module, problems))
    for name, (leaf, variable) in variables.items():
        variable.set_value(_to_jax(leaf, tensors[name], variable.get_value()))


def to_torch_state(module: nnx.Module) -> dict[str, np.ndarray]:
    """Copies all parameters and batch statistics of `module` under published names.

    Arrays are contiguous, writable and of the module's own dtypes.
    """
    return {
        name: np.array(
            _to_torch_order(leaf, np.asarray(variable.get_value())), order="C"
        )
        for name, (leaf, variable) in _torch_variables(module).items()
    }


def _torch_variables(module: nnx.Module) -> dict[str, tuple[str, nnx.Variable]]:
    """Maps published names to the flax leaf name and the variable."""
    nodes = list(nnx.iter_graph(module))
    sequentials = {path for path, node in nodes if isinstance(node, nnx.Sequential)}
    variables: dict[str, tuple[str, nnx.Variable]] = {}
    for path, node in nodes:
        if isinstance(node, nnx.Param | nnx.BatchStat):
            # nnx.Sequential keeps its modules one level deeper than torch's does.
            owners = [
                str(part)
                for depth, part in enumerate(path[:-1])
                if path[:depth] not in sequentials
            ]
            leaf = str(path[-1])
            variables[".".join([*owners, _torch_leaf(leaf, node)])] = (leaf, node)
    return variables


def _torch_leaf(leaf: str, variable: nnx.Variable) -> str:
    table = _TORCH_STATISTICS if isinstance(variable, nnx.BatchStat) else _TORCH_LEAVES
    return table.get(leaf, leaf)


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if leaf == "kernel" else shape


def _to_torch_order(leaf: str, values: np.ndarray) -> np.ndarray:
    if leaf != "kernel":
        return values
    return values.transpose(-1, -2, *range(values.ndim - 2))


def _to_jax(leaf: str, tensor: np.ndarray, current) -> jax.Array:
    if leaf == "kernel":
        tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
    # A copy, since jax would otherwise share memory that torch may go on training.
    return jax.device_put(np.array(tensor, current.dtype, order="C"), current.sharding)


def _describe(module: nnx.Module, problems: Sequence[str]) -> str:
    listed = "; ".join(problems[:_MAX_LISTED_PROBLEMS])
    rest = len(problems) - _MAX_LISTED_PROBLEMS
    more = f"; and {rest} more" if rest > 0 else ""
    return (
        f"{len(problems)} tensors do not fit {type(module).__name__}: {listed}{more}. "
        "Check that the model's config belongs to these weights; buffers that the "
        "module does not have can be listed in `ignore`"
    )
