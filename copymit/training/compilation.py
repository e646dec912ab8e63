"""The training step as a program, compiled ahead of the loop."""

import logging
import time
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from copymit.data.pipeline import Draws
from copymit.sharding import batch_sharding, wait_for_all
from copymit.training.state import TrainState
from copymit.training.step import SeedKey

logger = logging.getLogger(__name__)


def compile_step(
    train_step, abstract: TrainState, draws: Draws, seed: SeedKey, mesh: Mesh
):
    started = time.perf_counter()
    batch = {
        name: jax.ShapeDtypeStruct(
            (draws.batch_size, *np.shape(value)),
            np.asarray(value).dtype,
            sharding=batch_sharding(mesh),
        )
        for name, value in cast(dict[str, np.ndarray], draws.record(0)).items()
    }
    # The mesh tells kernels, which the compiler cannot split, what to do on each device.
    with jax.set_mesh(mesh):
        compiled = train_step.lower(abstract, batch, seed).compile()
    # Gloo gives up on a host that comes to the first step 30 s after the others.
    wait_for_all("the step is compiled")
    logger.info("compiled the step in %.1f s", time.perf_counter() - started)
    return compiled
