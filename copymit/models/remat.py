"""Rematerialisation: what the backward pass computes again instead of remembering."""

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "products", "blocks"]
"""`none` remembers all; `products` remembers convolutions and products with weights,
and computes norms, activations and attention scores again; `blocks` remembers only what
enters a block."""


def checkpoint(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Returns `function` with the same values and gradients, in less memory."""
    if remat == "none":
        return function
    policy = _saves_products if remat == "products" else None
    return jax.checkpoint(function, policy=policy)


def _saves_products(primitive, *args, **params) -> bool:
    return primitive is jax.lax.conv_general_dilated_p or (
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
            primitive, *args, **params
        )
    )
