"""PyTorch's names and axis order of weights, and ours: named arrays in, arrays out.

Module attributes are named as the published parameters, so a name is a path joined by
dots and only the leaf and the axis order differ:

| flax                         | torch                          |
|------------------------------|--------------------------------|
| `kernel` (*window, in, out)  | `weight` (out, in, *window)    |
| `kernel` (in, parts, out)    | `weight` (parts x out, in)     |
| `bias` (parts, out)          | `bias` (parts x out)           |
| `scale`, `embedding`         | `weight`                       |
| `mean`, `var` (batch norm)   | `running_mean`, `running_var`  |
| anything else                | the same                       |

The functions without a module take names of flat tables of parameters, as
`copymit.models.functional` makes them, one tensor at a time.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TORCH_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_MAX_LISTED_MISFITS = 10

Shape = tuple[int, ...]


def to_torch_name(name: str) -> str:
    """Returns the published name of a parameter (not of a batch statistic)."""
    *owners, leaf = name.split(".")
    return ".".join([*owners, _TORCH_LEAVES.get(leaf, leaf)])


def to_torch_shape(name: str, shape: Shape) -> Shape:
    """Returns the published shape of a parameter."""
    shape = _whole(name, shape)
    if not _is_kernel(name):
        return shape
    return (shape[-1], shape[-2], *shape[:-2])


def to_torch_order(name: str, values: np.ndarray) -> np.ndarray:
    """Views a parameter in the published order of axes."""
    values = values.reshape(_whole(name, values.shape))
    if not _is_kernel(name):
        return values
    return values.transpose(-1, -2, *range(values.ndim - 2))


def from_torch_order(name: str, tensor: np.ndarray, shape: Shape) -> np.ndarray:
    """Views a published tensor in our order of axes.

    Args:
      shape: of our parameter.
    """
    if _is_kernel(name):
        tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor.reshape(shape)


def _is_kernel(name: str) -> bool:
    return name.rpartition(".")[2] == "kernel"


def _whole(name: str, shape: Shape) -> Shape:
    """Returns the shape with the parts of a layer's outputs in one axis."""
    leaf = name.rpartition(".")[2]
    if (leaf, len(shape)) in (("kernel", 3), ("bias", 2)):
        return (*shape[:-2], shape[-2] * shape[-1])
    return shape


def check_fit(
    owner: str, needed: Mapping[str, Shape], found: Mapping[str, Shape], way_out: str
) -> None:
    """Compares the names and shapes of tensors with those that a network needs.

    Args:
      owner: what the tensors are for; begins the message.
    Raises:
      ValueError: if names are missing or unused, or shapes differ; lists them.
    """
    misfits = [f"missing {name}" for name in needed if name not in found]
    misfits += [f"unused {name}" for name in found if name not in needed]
    misfits += [
        f"{name} has shape {found[name]}, needs {shape}"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    if misfits:
        listed = "; ".join(misfits[:_MAX_LISTED_MISFITS])
        rest = len(misfits) - _MAX_LISTED_MISFITS
        more = f"; and {rest} more" if rest > 0 else ""
        raise ValueError(
            f"{len(misfits)} tensors do not fit {owner}: {listed}{more}. {way_out}"
        )


def load_torch_state(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    *,
    ignore: Sequence[str] = (),
) -> None:
    """Replaces every parameter and batch statistic of `module` by a published one.

    Values are copied, cast to the dtype and put on the sharding of what they replace;
    one without values (`functional.trace_module`) gets them. A failure changes nothing.

    Args:
      ignore: regular expressions, searched in the names of tensors that the module has
        no place for, such as `position_ids$` or `num_batches_tracked$`.
    Raises:
      ValueError: if names are missing or unused, or shapes differ; lists them.
    """
    variables = _torch_variables(module)
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in ignore) or r"(?!)")
    check_fit(
        type(module).__name__,
        {
            name: to_torch_shape(leaf, variable.shape)
            for name, (leaf, variable) in variables.items()
        },
        {
            name: tensor.shape
            for name, tensor in tensors.items()
            if name in variables or not ignored.search(name)
        },
        "Check that the model's config belongs to these weights; buffers that the "
        "module does not have can be listed in `ignore`",
    )
    for name, (leaf, variable) in variables.items():
        current = variable.get_value()
        # A copy, since jax would otherwise share memory that torch may go on training.
        values = np.array(
            from_torch_order(leaf, tensors[name], current.shape),
            current.dtype,
            order="C",
        )
        variable.set_value(jax.device_put(values, current.sharding))


def to_torch_state(module: nnx.Module) -> dict[str, np.ndarray]:
    """Copies all parameters and batch statistics of `module` under published names.

    Arrays are contiguous, writable and of the module's own dtypes.
    """
    return {
        name: np.array(
            to_torch_order(leaf, np.asarray(variable.get_value())), order="C"
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
            statistic = isinstance(node, nnx.BatchStat)
            table = _TORCH_STATISTICS if statistic else _TORCH_LEAVES
            variables[".".join([*owners, table.get(leaf, leaf)])] = (leaf, node)
    return variables
