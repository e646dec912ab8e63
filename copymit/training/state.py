"""What changes while a model trains, created on the devices that will hold it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.models.assembly import DiffusionModel, ModelParams, frozen_networks
from copymit.sharding import params_sharding, replicated


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
    if config.learning_rate_schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.learning_rate_schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    else:
        raise ValueError(
            f"train.learning_rate_schedule={config.learning_rate_schedule!r} is not "
            "known: use constant or cosine"
        )
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns AdamW with clipping by global norm, from the `train` section.

    Norms, biases and embeddings decay too, as in the original code's `AdamW` over all
    parameters.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_learning_rate(config),
            b1=config.adam_b1,
            b2=config.adam_b2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
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
    make = _make_state(model, optimizer, config)
    shardings = state_sharding(
        jax.eval_shape(make, jax.random.key(0), {}), optimizer, mesh
    )
    jitted = jax.jit(make, out_shardings=shardings, donate_argnums=1)
    return jitted(jax.random.key(config.seed), pretrained or {})


def abstract_state(
    model: DiffusionModel,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainState:
    """Describes the state (shapes, dtypes, shardings) without making it."""
    shapes = jax.eval_shape(
        _make_state(model, optimizer, config), jax.random.key(0), {}
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_sharding(shapes, optimizer, mesh),
    )


def state_sharding(
    shapes: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """Chooses the sharding of every array, in the structure of the state.

    Moments lie where their parameters lie.
    """

    def model_sharding(networks):
        return {name: params_sharding(p, mesh) for name, p in networks.items()}

    params = model_sharding(shapes.params)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return shapes._replace(
        step=replicated(mesh),  # type: ignore[arg-type]
        params=params,
        frozen=model_sharding(shapes.frozen),
        opt_state=opt_state,
        ema=model_sharding(shapes.ema),
    )


def _make_state(model: DiffusionModel, optimizer, config: ConfigDict):
    def make(key: jax.Array, pretrained: ModelParams) -> TrainState:
        networks = {**model.init(key), **pretrained}
        frozen = {
            name: networks.pop(name)
            for name in frozen_networks(config.model)
            if name in networks
        }
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=networks,
            frozen=frozen,
            opt_state=optimizer.init(networks),
            ema=jax.tree.map(jnp.copy, networks) if config.train.ema_decay else {},
        )

    return make
