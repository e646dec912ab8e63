"""Prints what devices send each other: kind -> (how many, bytes), by program.

Of the programs that the compiler makes for all devices, four of them in
test_collectives.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from copymit import generator
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.mitigation.registry import strengths
from copymit.models.assembly import abstract_params, make_model
from copymit.models.backend import tracing_for
from copymit.models.blocks import Transformer2DModel
from copymit.models.functional import describe_params, make_apply
from copymit.plan.cost import count_collectives
from copymit.plan.loops import read_program
from copymit.sharding import batch_sharding, make_mesh, params_sharding
from tests.test_generator import LENGTH, OPTIONS, RESOLUTION, small_config


def of_generation(**asked):
    """Of images that each device decodes one after the other."""
    generator._DECODED_PIXELS, mesh = RESOLUTION**2, make_mesh()
    config = small_config()
    config.autoencoder.name = "kl"
    config.autoencoder.kl.update(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1
    )
    model = make_model(config, RESOLUTION, "float32")
    options = OPTIONS._replace(
        timestep_spacing="leading", mitigations=strengths(**asked)
    )
    scheduler = make_noise_scheduler("cosine", "v_prediction")
    generate = generator.make_generate(
        model, scheduler, options, np.zeros(LENGTH, np.int32)
    )
    ids, numbers = (
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
        for shape in ((8, LENGTH), (8,))
    )
    with jax.set_mesh(mesh):
        compiled = generate.lower(abstract_params(model, mesh), ids, numbers).compile()
    return count_collectives(read_program(compiled.as_text()))


def of_transformer(machine):
    """Of the gradient of a block whose inner width two devices share."""

    def make(rngs):
        return Transformer2DModel(
            *(128, 128, 4),
            num_layers=1,
            use_linear_projection=True,
            groups=32,
            attention_implementation="xla",
            dtype=jnp.float32,
            rngs=rngs,
        )

    apply, params = make_apply(make), describe_params(make)
    mesh = make_mesh(data=2, tensor=2)
    shardings = params_sharding(params, mesh), batch_sharding(mesh)
    with tracing_for(machine), jax.set_mesh(mesh):
        gradient = jax.jit(
            jax.grad(lambda *inputs: jnp.sum(apply(*inputs) ** 2), (0, 1)),
            in_shardings=(*shardings, shardings[1]),
            out_shardings=shardings,
        )
        compiled = gradient.lower(
            {name: p.abstract() for name, p in params.items()},
            jax.ShapeDtypeStruct((8, 8, 8, 128), jnp.float32),
            jax.ShapeDtypeStruct((8, 5, 128), jnp.float32),
        ).compile()
    return count_collectives(read_program(compiled.as_text()))


if __name__ == "__main__":
    programs = {
        "transformer": of_transformer("cpu"),
        "transformer of TPUs": of_transformer("tpu"),
        "guidance": of_generation(),
        "controlled": of_generation(start_attention=1.25, mask_padding=True),
        "optimised": of_generation(prompt_target=1e-3, prompt_iterations=2),
    }
    print(json.dumps(programs))
