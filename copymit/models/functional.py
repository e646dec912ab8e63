"""Modules as pure functions of a flat table of parameters.

Training, sharding and checkpoints see a model as `{"down_blocks.0.resnets.0.conv1.kernel":
array, ...}`: a pytree whose keys can be read, matched by a rule and found in a file.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


def init_params(
    make_module: Callable[[nnx.Rngs], nnx.Module], key: jax.Array
) -> Params:
    """Makes a module and returns its parameters by dotted path; traceable."""
    state = nnx.state(make_module(nnx.Rngs(key)), nnx.Param)
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def make_apply(
    make_module: Callable[[nnx.Rngs], nnx.Module], method: str = "__call__"
) -> Callable[..., Any]:
    """Returns `apply(params, *args)`, which calls the module with these parameters.

    The module is traced once, without allocating its parameters. A missing or unknown
    parameter raises a `ValueError` that names it.

    Args:
      method: what to call of a module that does more than one thing.
    """
    abstract = nnx.eval_shape(lambda: make_module(nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract, nnx.Param)
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def apply(params: Params, *args, **kwargs):
        if params.keys() != paths.keys():
            odd = sorted(params.keys() ^ paths.keys())
            raise ValueError(f"parameters of another model: {', '.join(odd[:10])}")
        flat = [(paths[name], nnx.Param(value)) for name, value in params.items()]
        module = nnx.merge(graphdef, nnx.from_flat_state(flat))
        return getattr(module, method)(*args, **kwargs)

    return apply
