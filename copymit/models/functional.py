"""Modules as pure functions of a flat table of parameters.

Training, sharding and checkpoints see a model as `{"down_blocks.0.resnets.0.conv1.kernel":
array, ...}`: a pytree whose keys can be read, matched by a rule and found in a file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from copymit.models.initializers import Initializer
from copymit.sharding import batch_shards

Params = dict[str, jax.Array]
Module = TypeVar("Module", bound=nnx.Module)
MakeModule = Callable[[nnx.Rngs], nnx.Module]

# What nnx makes without randomness, by the last part of the name.
_CONSTANTS = {"bias": 0.0, "scale": 1.0, "lambda1": 1.0}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter that is not there yet; `initializer` is None for a constant."""

    shape: tuple[int, ...]
    dtype: Any
    initializer: Initializer | None

    @property
    def output_axes(self) -> int:
        """Counts the last axes of a kernel that are outputs."""
        return self.initializer.output_axes if self.initializer else 1

    def abstract(self, sharding: Sharding | None = None) -> jax.ShapeDtypeStruct:
        """Describes the array without how it starts."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)


def trace_module(make_module: Callable[[nnx.Rngs], Module]) -> Module:
    """Makes a module without values: shapes and types in place of its parameters."""
    return nnx.eval_shape(lambda: make_module(_OneKey()))


def describe_params(make_module: MakeModule) -> dict[str, Parameter]:
    """Returns the parameters of a module by dotted path, without making them."""
    return {
        name: Parameter(
            variable.shape, variable.dtype, variable.get_metadata("initializer", None)
        )
        for name, variable in _variables(trace_module(make_module)).items()
    }


def init_params(
    parameters: MakeModule | Mapping[str, Parameter],
    seed: int | str = 0,
    shardings: Mapping[str, Sharding] | None = None,
) -> Params:
    """Draws parameters, each on the devices that will hold it.

    A value is a function of the seed, the name and the shape, whatever the devices,
    hosts and other parameters. A host holds one parameter beside what stays there.

    Args:
      parameters: or the module whose parameters they are.
      seed: two networks of one run have different ones.
      shardings: by name; by default all are on the default device.
    """
    if callable(parameters):
        parameters = describe_params(parameters)
    params = {}
    for name, parameter in parameters.items():
        values = _draw(name, parameter, seed)
        params[name] = (
            jax.make_array_from_callback(
                values.shape, shardings[name], values.__getitem__
            )
            if shardings
            else jax.device_put(values)
        )
    return params


def make_apply(make_module: MakeModule, method: str = "__call__") -> Callable[..., Any]:
    """Returns `apply(params, *args)`, which calls the module with these parameters.

    The module is traced once, without allocating its parameters. A missing or unknown
    parameter raises a `ValueError` that names it.

    Args:
      method: what to call of a module that does more than one thing.
    """
    graphdef, state = nnx.split(trace_module(make_module), nnx.Param)
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def apply(params: Params, *args, **kwargs):
        if params.keys() != paths.keys():
            odd = sorted(params.keys() ^ paths.keys())
            raise ValueError(f"parameters of another model: {', '.join(odd[:10])}")
        flat = [(paths[name], nnx.Param(value)) for name, value in params.items()]
        module = nnx.merge(graphdef, nnx.from_flat_state(flat))
        return getattr(module, method)(*args, **kwargs)

    return apply


def in_slices(
    function: Callable[[jax.Array], jax.Array], batch: jax.Array, size: int
) -> jax.Array:
    """Computes `function(batch)` for at most `size` examples at a time.

    Args:
      size: on each device; a slice takes as many examples from every device.
    """
    length, most = len(batch), max(1, size) * batch_shards()
    slices = next(
        n for n in range(1, length + 1) if length % n == 0 >= length - n * most
    )
    if slices == 1:
        return function(batch)
    strided = batch.reshape(-1, slices, *batch.shape[1:]).swapaxes(0, 1)
    made = jax.lax.map(function, strided).swapaxes(0, 1)
    return made.reshape(length, *made.shape[2:])


def module_params(module: nnx.Module) -> Params:
    """Returns the values of a module's parameters by dotted path."""
    return {name: v.get_value() for name, v in _variables(module).items()}


def _variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    state = nnx.state(module, nnx.Param)
    return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(state)}


def _draw(name: str, parameter: Parameter, seed: int | str) -> np.ndarray:
    if parameter.initializer is not None:
        values = parameter.initializer.draw(f"{seed} {name}".encode(), parameter.shape)
        return values.astype(parameter.dtype, copy=False)
    leaf = name.rpartition(".")[2]
    if leaf not in _CONSTANTS:
        raise ValueError(
            f"{name} starts in an unknown way: make it with one of "
            "copymit.models.initializers"
        )
    return np.full(parameter.shape, _CONSTANTS[leaf], parameter.dtype)


class _OneKey(nnx.Rngs):
    """Hands out the same key always, for modules that are only traced.

    nnx counts the keys it hands out, and under a trace each count costs more than the one
    before it: seconds for a UNet.
    """

    def __init__(self):
        """Without streams of keys to count."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
