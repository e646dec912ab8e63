"""The gradient of a batch, computed whole or in parts that fit the device.

Whatever is drawn or mixed across the batch is so before it is divided: in any number of
parts, the loss and its gradient are those of the whole batch, but for rounding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict
from optax.microbatching import AccumulationType, microbatch

from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.diffusion.objective import Draw, denoising_loss, draw_noise
from copymit.mitigation.training import (
    image_keys,
    kept_examples,
    training_noise,
    training_text,
)
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.models.lora import assemble

SUM, CONCAT = AccumulationType.SUM, AccumulationType.CONCAT

Batch = dict[str, jax.Array]


class BatchGradients(NamedTuple):
    """What a batch teaches.

    Attributes:
      loss: mean over the examples that count.
      kept: share of the batch that counts.
      gradients: of that loss, for every trained network.
    """

    loss: Float[Array, ""]
    kept: Float[Array, ""]
    gradients: ModelParams


def make_batch_gradients(
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    config: ConfigDict,
    empty_ids: Int[np.ndarray, " L"],
) -> Callable[[ModelParams, ModelParams, Batch, jax.Array, jax.Array], BatchGradients]:
    """Returns (params, frozen, batch, key of the step, key of the run) -> gradients.

    Args:
      empty_ids: token ids of the empty caption.
    """
    parts = config.train.accumulate_steps
    perturb = training_text(config.mitigation.train)
    noise_rule = training_noise(config.mitigation.train, noise_scheduler)
    skips = kept_examples(config.mitigation.train, noise_scheduler) is not None
    loss_fn = _make_loss(model, noise_scheduler, config, empty_ids)

    def batch_gradients(params, frozen, batch, step_key, run_key) -> BatchGradients:
        batch_size = len(jax.tree.leaves(batch)[0])
        # Parts are taken with a stride: each device has its share of every one.
        in_parts = functools.partial(
            microbatch, microbatch_size=batch_size // parts if parts > 1 else None
        )
        latents_key, noise_key = jax.random.split(step_key)
        text_key = jax.random.fold_in(step_key, 2)
        encode_images = functools.partial(moments_of, model, frozen)
        moments = in_parts(encode_images, 0, accumulator=CONCAT)(batch)
        latents = model.sample_latents(moments, latents_key)
        draw = draw_noise(
            noise_key,
            latents.shape,
            noise_scheduler.num_train_timesteps,
            noise_offset=config.train.noise_offset,
            input_perturbation=config.train.input_perturbation,
        )
        if noise_rule:
            content = batch["moments"] if "moments" in batch else batch["pixel_values"]
            noised = noise_rule(latents, draw, image_keys(content, run_key))
            draw = draw._replace(noised=noised)
        encoder = {k: v for k, v in params.items() if k == "text_encoder"}
        others = {k: v for k, v in params.items() if k not in encoder}

        def embed(encoder, batch):
            return hidden_states_of(model, assemble(encoder, frozen), batch)

        def embed_and_perturb(encoder):
            hidden_states = in_parts(embed, 1, accumulator=CONCAT)(encoder, batch)
            return perturb(hidden_states, text_key)

        if parts == 1:
            hidden_states, pull = jax.vjp(embed_and_perturb, encoder)
        else:
            hidden_states = embed_and_perturb(encoder)

            def pull(gradient):
                """Embeds again, a part after the other, and remembers none."""
                hidden_states = in_parts(embed, 1, accumulator=CONCAT)(encoder, batch)
                _, back = jax.vjp(lambda x: perturb(x, text_key), hidden_states)

                def pull_part(batch, gradient):
                    return jax.vjp(lambda e: embed(e, batch), encoder)[1](gradient)

                return in_parts(pull_part, (0, 1))(batch, *back(gradient))

        networks = assemble(encoder, frozen)
        of_part = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
        (loss, kept), (gradients, text_gradient) = in_parts(
            lambda *arrays: of_part(others, *arrays, networks, 1 / batch_size),
            (0, 1, 2),
            accumulator=(SUM, (SUM, CONCAT)),
        )(hidden_states, latents, draw)
        if encoder:
            gradients |= pull(text_gradient)[0]
        if skips:
            # From a mean over the batch to one over the examples that count.
            scale = 1 / jnp.maximum(kept, 1 / batch_size)
            loss, gradients = jax.tree.map(lambda x: x * scale, (loss, gradients))
        return BatchGradients(loss, kept, gradients)

    return batch_gradients


def _make_loss(model, noise_scheduler, config, empty_ids):
    """Returns what a part of the batch adds to the loss, and to the share that counts."""
    keep_rule = kept_examples(config.mitigation.train, noise_scheduler)

    def loss_fn(params, hidden_states, latents, draw: Draw, others, share: float):
        networks = assemble(params, others)

        def predict(noisy_latents, timesteps, encoder_hidden_states):
            return model.predict(
                networks, noisy_latents, timesteps, encoder_hidden_states
            )

        def keep(model_pred, noisy_latents, timesteps):
            empty = model.encode_text(networks, jnp.asarray(empty_ids)[None])
            empty = jnp.broadcast_to(empty, hidden_states.shape)
            unconditional = predict(noisy_latents, timesteps, empty)
            return keep_rule(model_pred, unconditional, timesteps)

        losses, kept = denoising_loss(
            predict,
            noise_scheduler,
            latents,
            hidden_states,
            draw,
            min_snr_gamma=config.train.min_snr_gamma or None,
            keep=keep if keep_rule else None,
        )
        return jnp.sum(losses) * share, jnp.sum(kept) * share

    return loss_fn


def moments_of(model: DiffusionModel, frozen: ModelParams, batch: Batch) -> jax.Array:
    """Takes the moments of the latents from the cache, or encodes the pixels."""
    if "moments" in batch:
        return batch["moments"]
    pixel_values = batch["pixel_values"].astype(jnp.float32) / 127.5 - 1
    return model.encode_images(frozen, pixel_values)


def hidden_states_of(
    model: DiffusionModel, networks: ModelParams, batch: Batch
) -> jax.Array:
    """Takes the text embeddings from the cache, or encodes the captions."""
    if "encoder_hidden_states" in batch:
        return batch["encoder_hidden_states"]
    return model.encode_text(networks, batch["input_ids"])
