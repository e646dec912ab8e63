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
from copymit.diffusion.objective import denoising_loss
from copymit.mitigation.training import (
    image_keys,
    kept_examples,
    training_noise,
    training_text,
)
from copymit.models.assembly import DiffusionModel
from copymit.sharding import batch_sharding, replicated
from copymit.training.state import TrainState, make_learning_rate

Scalars = dict[str, jax.Array]
SeedKey = UInt32[np.ndarray, "2"]


def seed_key(seed: int) -> SeedKey:
    """Returns the key of a seed as numbers, which every host can pass to the step."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


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
    perturb = training_text(config.mitigation.train)
    noise_rule = training_noise(config.mitigation.train, noise_scheduler)
    keep_rule = kept_examples(config.mitigation.train, noise_scheduler)

    def train_step(
        state: TrainState, batch, seed: SeedKey
    ) -> tuple[TrainState, Scalars]:
        step_key = jax.random.fold_in(
            jax.random.wrap_key_data(jnp.asarray(seed)), state.step
        )
        latents_key, noise_key = jax.random.split(step_key)
        text_key = jax.random.fold_in(step_key, 2)
        noising = noise_rule and noise_rule(
            image_keys(_content(batch), jax.random.wrap_key_data(jnp.asarray(seed)))
        )
        moments = _moments(model, state.frozen, batch)
        latents = model.sample_latents(moments, latents_key)

        def loss_fn(params):
            networks = {**params, **state.frozen}
            hidden_states = perturb(_hidden_states(model, networks, batch), text_key)

            def predict(noisy_latents, timesteps, encoder_hidden_states):
                return model.predict(
                    networks, noisy_latents, timesteps, encoder_hidden_states
                )

            def keep(model_pred, noisy_latents, timesteps):
                empty = model.encode_text(networks, jnp.asarray(empty_ids)[None])
                empty = jnp.broadcast_to(empty, hidden_states.shape)
                unconditional = predict(noisy_latents, timesteps, empty)
                return keep_rule(model_pred, unconditional, timesteps)

            losses = denoising_loss(
                predict,
                noise_scheduler,
                latents,
                hidden_states,
                noise_key,
                min_snr_gamma=config.train.min_snr_gamma or None,
                keep=keep if keep_rule else None,
                noising=noising,
            )
            return jnp.mean(losses), jnp.mean(losses == 0)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, skipped), grads = grad_fn(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if keep_rule:
            params, opt_state = _unless_all(
                skipped == 1, (params, opt_state), (state.params, state.opt_state)
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
        if keep_rule:
            scalars["skipped_share"] = skipped
        return new_state, scalars

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def _content(batch) -> jax.Array:
    """Takes what an image is in this batch, the same at every visit."""
    return batch["moments"] if "moments" in batch else batch["pixel_values"]


def _moments(model: DiffusionModel, frozen, batch) -> jax.Array:
    """Takes the moments of the latents from the cache, or encodes the pixels."""
    if "moments" in batch:
        return batch["moments"]
    pixel_values = batch["pixel_values"].astype(jnp.float32) / 127.5 - 1
    return model.encode_images(frozen, pixel_values)


def _hidden_states(model: DiffusionModel, networks, batch) -> jax.Array:
    """Takes the text embeddings from the cache, or encodes the captions."""
    if "encoder_hidden_states" in batch:
        return batch["encoder_hidden_states"]
    return model.encode_text(networks, batch["input_ids"])


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
