"""Descent of each example down its own loss, until it is low enough.

A function of a batch enters that gives one loss an example; a moved batch leaves. An
example that has reached the target stays where it is, so that its result depends on
nothing else in the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


class Descended(NamedTuple):
    """Where a batch came to.

    Attributes:
      position: of each example.
      steps: that each took: 0 if it was below the target from the start, and all that
        were allowed if it was never seen below.
    """

    position: Float[Array, "B ..."]
    steps: Int[Array, " B"]


def row_norms(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Computes the Euclidean norm of each example, with gradient 0 where it is 0."""
    squares = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(x.dtype).tiny))


def per_row(values: Float[Array, " B"], like: Float[Array, "B ..."]) -> jax.Array:
    """Shapes one number an example so that it broadcasts over the example."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def descend(
    losses: Callable[[jax.Array], Float[Array, " B"]],
    start: Float[Array, "B ..."],
    optimizer: optax.GradientTransformation,
    *,
    target: float,
    max_iterations: int,
) -> Descended:
    """Moves every example until its loss is at most `target`.

    Args:
      losses: example by example: the loss of one must not depend on another.
      optimizer: elementwise, as Adam is.
      max_iterations: after which an example stays where it came to.
    Returns:
      The moved batch; an example below the target from the start is bit for bit as it
      was, and so is one whose loss is not a number.
    """

    def unfinished(carry):
        *_, active, _, iteration = carry
        return active.any() & (iteration < max_iterations)

    def move(carry):
        x, optimizer_state, active, steps, iteration = carry
        values, pull_back = jax.vjp(losses, x)
        active &= values > target
        (gradient,) = pull_back(jnp.ones_like(values))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, x)
        moved = jnp.where(per_row(active, x), x + updates, x)
        return moved, optimizer_state, active, steps + active, iteration + 1

    active, steps = jnp.ones(start.shape[0], bool), jnp.zeros(start.shape[0], int)
    carry = (start, optimizer.init(start), active, steps, jnp.asarray(0))
    position, *_, steps, _ = jax.lax.while_loop(unfinished, move, carry)
    return Descended(position, steps)
