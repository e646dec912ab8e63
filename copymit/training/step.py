"""One step of training: a batch and a state in, a new state and scalars out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int, UInt32
from ml_collections import ConfigDict

from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.mitigation.training import kept_examples
from copymit.models.assembly import DiffusionModel
from copymit.sharding import batch_sharding, replicated
from copymit.training.gradients import make_batch_gradients
from copymit.training.state import TrainState, make_learning_rate

Scalars = dict[str, jax.Array]
SeedKey = UInt32[np.ndarray, "2"]


def seed_key(seed: int) -> SeedKey:
    """Returns the key of a seed as numbers, which every host can pass to the step."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def without_unused(
    state: TrainState, config: ConfigDict, has_moments: bool, has_embeddings: bool
) -> TrainState:
    """Leaves out the networks that do not train and that the step does not compute.

    Args:
      has_moments, has_embeddings: whether batches hold what caches know.
    """
    unused = {"vae"} if has_moments else set()
    if has_embeddings and not config.mitigation.train.skip_above:
        unused.add("text_encoder")
    kept = {k: v for k, v in state.frozen.items() if k not in unused}
    return state._replace(frozen=kept)


def make_train_step(
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    shardings: TrainState,
    mesh: Mesh,
    empty_ids: Int[np.ndarray, " L"],
) -> Callable[[TrainState, dict[str, jax.Array], SeedKey], tuple[TrainState, Scalars]]:
    """Returns the compiled step; the state passed in is consumed.

    Noise and timesteps are functions of (seed, step, position in the global batch), the
    same however the batch is split over devices. The seed is the step's last argument,
    `seed_key(config.seed)`: as a constant, it would have every seed compiled anew.

    Args:
      empty_ids: token ids of the empty caption.
    """
    learning_rate = make_learning_rate(config.train)
    batch_gradients = make_batch_gradients(model, noise_scheduler, config, empty_ids)
    skips = kept_examples(config.mitigation.train, noise_scheduler) is not None

    def train_step(
        state: TrainState, batch, seed: SeedKey
    ) -> tuple[TrainState, Scalars]:
        run_key = jax.random.wrap_key_data(jnp.asarray(seed))
        loss, kept, grads = batch_gradients(
            state.params,
            state.frozen,
            batch,
            jax.random.fold_in(run_key, state.step),
            run_key,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if skips:
            params, opt_state = _unless_all(
                kept == 0, (params, opt_state), (state.params, state.opt_state)
            )
        new_state = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=_update_ema(state, params, config.train.ema_decay),
        )
        scalars = {
            "loss": loss,
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
            "learning_rate": jnp.asarray(learning_rate(state.step)),
        }
        if skips:
            scalars["skipped_share"] = 1 - kept
        return new_state, scalars

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _unless_all(skipped: jax.Array, new, old):
    """Returns `new`, or `old` but for its counts of steps if nothing was learned from.

    Without gradients, momentum and weight decay would still move the parameters. The
    counts go on, so that the learning rate keeps to the schedule of the config.
    """

    def choose(new, old):
        moves = jnp.issubdtype(new.dtype, jnp.inexact)
        return jnp.where(skipped, old, new) if moves else new

    return jax.tree.map(choose, new, old)


def _update_ema(state: TrainState, params, decay: float):
    if not state.ema:
        return state.ema
    # Warmed up, so that the average of a short run does not remember its first weights.
    step = state.step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + rate * (p - e), state.ema, params)
