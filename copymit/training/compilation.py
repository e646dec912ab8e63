"""The training step as a program, compiled ahead of the loop."""

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.chips import find_chip
from copymit.data.pipeline import Draws
from copymit.metrics import format_duration
from copymit.models.assembly import DiffusionModel
from copymit.models.flops import count_flops, jaxprs_in
from copymit.sharding import batch_sharding, wait_for_all
from copymit.training.state import TrainState
from copymit.training.step import SeedKey

logger = logging.getLogger(__name__)


# Of a step, measured: SD 2.1's on an H100's 16 cores in 107 s, for v5e:2x4 on two cores in
# 800 s; that of configs/tiny.py for two CPU cores in 30 s.
_SECONDS_AN_EQUATION = {"gpu": 0.002, "tpu": 0.016, "cpu": 0.002}


def compile_step(
    train_step, abstract: TrainState, draws: Draws, seed: SeedKey, mesh: Mesh
):
    """Compiles the step, and says before how long that usually takes."""
    started = time.perf_counter()
    batch = abstract_batch(draws, mesh)
    # The mesh tells kernels, which the compiler cannot split, what to do on each device.
    with jax.set_mesh(mesh):
        traced = train_step.trace(abstract, batch, seed)
        seconds = usual_seconds(traced.jaxpr.jaxpr, jax.default_backend())
        logger.info(
            "compiling the step: usually %s, or a few seconds once it was compiled here",
            format_duration(seconds),
        )
        compiled = traced.lower().compile()
    # Gloo gives up on a host that comes to the first step 30 s after the others.
    wait_for_all("the step is compiled")
    logger.info("compiled the step in %.1f s", time.perf_counter() - started)
    return compiled


def usual_seconds(jaxpr: Jaxpr, backend: str) -> float:
    """Returns how long a program usually compiles, by the number of its equations."""
    return _SECONDS_AN_EQUATION[backend] * count_equations(jaxpr)


def count_equations(jaxpr: Jaxpr) -> int:
    """Counts the equations of a program, and of what it calls."""
    return len(jaxpr.eqns) + sum(
        count_equations(inner)
        for equation in jaxpr.eqns
        for inner in jaxprs_in(equation.params)
    )


def abstract_batch(draws: Draws, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes the batch of all hosts."""
    return {
        name: jax.ShapeDtypeStruct(
            (draws.batch_size, *np.shape(value)),
            np.asarray(value).dtype,
            sharding=batch_sharding(mesh),
        )
        for name, value in cast(dict[str, np.ndarray], draws.record(0)).items()
    }


def model_flops(
    model: DiffusionModel, batch: Mapping[str, Any], config: ConfigDict
) -> int:
    """Counts the operations that a step needs, whatever the program repeats.

    A network that trains takes three times its forward pass, one that does not, one.
    """
    size = next(iter(batch.values())).shape[0]
    text = config.model.text_encoder
    latents = jax.ShapeDtypeStruct((size, *model.latent_shape), jnp.float32)
    hidden = jax.ShapeDtypeStruct(
        (size, text.max_length, text.hidden_size), jnp.float32
    )
    timesteps = jax.ShapeDtypeStruct((size,), jnp.int32)
    params = {
        network: {name: parameter.abstract() for name, parameter in parameters.items()}
        for network, parameters in model.parameters.items()
    }
    flops = 3 * count_flops(model.predict, params, latents, timesteps, hidden)
    if "input_ids" in batch:
        once = count_flops(model.encode_text, params, batch["input_ids"])
        flops += (3 if text.train else 1) * once
    if "pixel_values" in batch:
        pixels = jax.ShapeDtypeStruct(batch["pixel_values"].shape, jnp.float32)
        flops += count_flops(model.encode_images, params, pixels)
    return flops


def seconds_at_peak(
    model: DiffusionModel, batch: Mapping[str, Any], config: ConfigDict
) -> float | None:
    """Returns how long a step would take at the devices' peak in bfloat16, if it is known.

    Times the steps a second it is the model FLOPs utilisation.
    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    chip = find_chip(jax.devices()[0].device_kind)
    if chip is None:
        return None
    return model_flops(model, batch, config) / (chip.bf16_flops * jax.device_count())
