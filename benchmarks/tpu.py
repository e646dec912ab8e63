"""What a training step of Stable Diffusion 2.1's UNet costs on TPUs, without a TPU.

    pip install -c constraints.txt -e '.[tpu]'
    python -m benchmarks.tpu [ATTENTION REMAT]

Compiles the step for eight v5e chips: AdamW, bfloat16 compute, float32 weights,
parameters and moments sharded 8 ways, latents 32x32x4, global batch 64. Printed beside
what maxdiffusion's step compiles to. Takes about 8 GB of memory and half an hour of a core;
with JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 minutes, and other numbers (docs/benchmarks.md).
The bytes of Pallas kernels are those that enter and leave them.
"""

import functools
import os
import sys
import time

from copymit.chips import TOPOLOGY_ENVIRONMENT

os.environ |= TOPOLOGY_ENVIRONMENT

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies

from copymit.models.backend import tracing_for
from copymit.models.functional import describe_params, make_apply
from copymit.models.unet import SD_2, UNet2DConditionModel
from copymit.sharding import AXES, batch_sharding, params_sharding, replicated

PEER = ("maxdiffusion", 2.97, 82.5, 3.31, 1.23, 226)
BATCH_SIZE = 64
HEADER = ("per device", "TFLOP", "GB accessed", "GiB temporary", "GiB arguments", "s")


def main(attention: str = "auto", remat: str = "none") -> None:
    """Compiles one variant and prints its costs."""
    started = time.perf_counter()
    compiled = compile_step(attention, remat)
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    row = (
        f"attention={attention} remat={remat}",
        cost["flops"] / 1e12,
        cost["bytes accessed"] / 1e9,
        memory.temp_size_in_bytes / 2**30,
        memory.argument_size_in_bytes / 2**30,
        time.perf_counter() - started,
    )
    print(f"{HEADER[0]:36}" + "".join(f"{name:>15}" for name in HEADER[1:]))
    for name, *values in (row, PEER):
        print(f"{name:36}" + "".join(f"{value:15.2f}" for value in values))


def compile_step(attention: str, remat: str):
    """Compiles the training step for v5e:2x4."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = topologies.make_mesh(topology, (1, 8, 1), AXES)
    config = dataclasses.replace(
        SD_2, sample_size=32, attention_implementation=attention, remat=remat
    )

    def make(rngs):
        return UNet2DConditionModel(config, dtype=jnp.bfloat16, rngs=rngs)

    apply = make_apply(make)
    optimizer = optax.adamw(1e-5)
    params = {name: p.abstract() for name, p in describe_params(make).items()}
    shardings = params_sharding(params, mesh)
    opt_state = jax.eval_shape(optimizer.init, params)
    opt_shardings = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    batch = {
        "latents": jnp.zeros((BATCH_SIZE, 32, 32, 4)),
        "noise": jnp.zeros((BATCH_SIZE, 32, 32, 4)),
        "timesteps": jnp.zeros(BATCH_SIZE, jnp.int32),
        "text": jnp.zeros((BATCH_SIZE, 77, 1024), jnp.bfloat16),
    }

    def step(params, opt_state, batch):
        def loss(params):
            inputs = (batch["latents"], batch["timesteps"], batch["text"])
            return jnp.mean((apply(params, *inputs) - batch["noise"]) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    jitted = functools.partial(jax.jit, donate_argnums=(0, 1))(
        step,
        in_shardings=(shardings, opt_shardings, batch_sharding(mesh)),
        out_shardings=(shardings, opt_shardings, replicated(mesh)),
    )
    with tracing_for("tpu"), jax.set_mesh(mesh):
        return jitted.lower(params, opt_state, jax.eval_shape(lambda: batch)).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
