"""How many operations the products and convolutions of a function take."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from copymit.models.backend import tracing_for


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts what `function` computes, each multiplication and addition as one.

    It is traced as for a CPU, where nothing is hidden in kernels.

    Args:
      arguments: arrays, or their shapes and dtypes.
    """
    with tracing_for("cpu"):
        # Another function for jax, so that it does not remember a trace of another kind.
        return _count(jax.make_jaxpr(lambda *x: function(*x))(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        shapes = [_shape(x) for x in equation.invars]
        outputs = math.prod(_shape(equation.outvars[0])) if equation.outvars else 0
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * outputs * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            out_axis = params["dimension_numbers"].rhs_spec[0]
            kernel = shapes[1]
            total += 2 * outputs * (math.prod(kernel) // kernel[out_axis])
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_count, jaxprs_in(params)))
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def jaxprs_in(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the functions that an equation calls; not the derivatives of one."""
    for name, value in params.items():
        if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):
            continue
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
