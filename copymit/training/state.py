"""What changes while a model trains, created on the devices that will hold it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from ml_collections import ConfigDict

from copymit.models.assembly import (
    DiffusionModel,
    ModelParams,
    abstract_networks,
    trained_and_frozen,
)
from copymit.models.functional import init_params
from copymit.sharding import MIN_SHARDED_SIZE, replicated
from copymit.training.moments import scale_by_small_adam


class TrainState(NamedTuple):
    """Everything that a checkpoint must hold.

    Attributes:
      step: completed steps, int32 scalar.
      params: trained networks.
      frozen: networks that stay as they are.
      opt_state: of the trained networks.
      ema: moving average of `params`; empty when the run keeps none.
    """

    step: jax.Array
    params: ModelParams
    frozen: ModelParams
    opt_state: Any
    ema: ModelParams


def make_learning_rate(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate of every step, from the `train` section.

    Raises:
      ValueError: for an unknown schedule or a warm-up longer than the run.
    """
    peak, warmup, steps = config.learning_rate, config.warmup_steps, config.steps
    if not 0 <= warmup <= steps:
        raise ValueError(
            f"train.warmup_steps={warmup} must lie between 0 and train.steps={steps}"
        )
    # The first step already moves: (step + 1) / warmup of the peak.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 0))
    left = max(steps - warmup, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left),
        "linear": lambda: optax.linear_schedule(peak, 0.0, left),
        "polynomial": lambda: optax.polynomial_schedule(
            peak, 0.0, config.learning_rate_power, left
        ),
    }
    if config.learning_rate_schedule not in schedules:
        raise ValueError(
            f"train.learning_rate_schedule={config.learning_rate_schedule!r} is not "
            f"known: use one of {', '.join(schedules)}"
        )
    after = schedules[config.learning_rate_schedule]()
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns AdamW with clipping by global norm, from the `train` section.

    Norms, biases and embeddings decay too, as in the original code's `AdamW` over all
    parameters.
    """
    adam = optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_epsilon)
    # The second is optax.adamw, but for the moments' dtype.
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.chain(
            scale_by_small_adam(adam, config.moments_dtype),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(make_learning_rate(config)),
        ),
    )


def init_state(
    model: DiffusionModel,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
    pretrained: ModelParams | None = None,
) -> TrainState:
    """Creates the state of step 0, every array born in its final sharding.

    Args:
      pretrained: networks that do not start at random, in their final sharding; they
        are consumed.
    """
    pretrained = pretrained or {}
    abstract = abstract_state(model, optimizer, config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    trained, _ = trained_and_frozen(model, config)

    def made(parameters, shardings, there):
        """Draws what is not there."""
        return {
            name: there[name]
            if name in there
            else init_params(parameters[name], f"{config.seed} {name}", sharding)
            for name, sharding in shardings.items()
        }

    frozen = made(model.parameters, shardings.frozen, pretrained)
    # Of a network that is frozen only the factors beside it train.
    whole = {k: v for k, v in pretrained.items() if k not in frozen}
    params = made(trained, shardings.params, whole)
    copy = jax.jit(
        lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings.params
    )
    return TrainState(
        step=_zeros(abstract.step),  # type: ignore[arg-type]
        params=params,
        frozen=frozen,
        # Where AdamW starts; asking it would compile a kernel for each moment. A scale of
        # 0 is as good as 1 for moments of 0.
        opt_state=jax.tree.map(_zeros, abstract.opt_state),
        ema=copy(params) if abstract.ema else {},
    )


def abstract_state(
    model: DiffusionModel,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """Describes the state (shapes, dtypes, shardings) without making it."""
    params, frozen = (
        abstract_networks(networks, mesh)
        for networks in trained_and_frozen(model, config)
    )

    def on(sharding: Sharding, x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda x, param: on(_beside(param, x.shape), x),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda x: on(replicated(mesh), x),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    ema = params if config.train.ema_decay else {}
    return TrainState(step, params, frozen, opt_state, ema)  # type: ignore[arg-type]


def _beside(param: jax.ShapeDtypeStruct, shape: tuple[int, ...]) -> Sharding:
    """Places what belongs to a parameter where the parameter lies.

    Args:
      shape: the parameter's, or with an axis of 1, or without axes.
    """
    if shape == param.shape:
        return param.sharding
    mesh, spec = param.sharding.mesh, param.sharding.spec
    axes = (axis if size > 1 else None for axis, size in zip(spec, shape, strict=False))
    return NamedSharding(mesh, PartitionSpec(*axes))


def _zeros(abstract: jax.ShapeDtypeStruct) -> jax.Array:
    shape, dtype, sharding = abstract.shape, abstract.dtype, abstract.sharding
    if abstract.size >= MIN_SHARDED_SIZE:
        return jnp.zeros(shape, dtype, device=sharding)
    # On the host, since for the devices each shape is one more kernel to compile.
    return jax.make_array_from_callback(
        shape, sharding, np.zeros(shape, dtype).__getitem__
    )
