"""What devices send each other, by the programs that the compiler makes for four of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_ON_4_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np
from copymit import generator
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.mitigation.registry import strengths
from copymit.models.assembly import abstract_params, make_model
from copymit.plan.cost import count_collectives
from copymit.sharding import batch_sharding, make_mesh
from tests.test_generator import LENGTH, OPTIONS, RESOLUTION, small_config

mesh = make_mesh()
# Each device decodes its two images one after the other.
generator._DECODED_PIXELS = RESOLUTION**2


def of_generation(**asked):
    config = small_config()
    config.autoencoder.name = "kl"
    config.autoencoder.kl.update(
        block_out_channels=(8,), norm_num_groups=4, layers_per_block=1
    )
    model = make_model(config, RESOLUTION, "float32")
    options = OPTIONS._replace(timestep_spacing="leading", mitigations=strengths(**asked))
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
    return count_collectives(compiled.as_text())


print(json.dumps({
    "guidance": of_generation(),
    "controlled": of_generation(start_attention=1.25, mask_padding=True),
    "optimised": of_generation(prompt_target=1e-3, prompt_iterations=2),
}))
"""


@pytest.fixture(scope="module")
def collectives() -> dict:
    """Kind -> (how many, bytes), by program; a process' devices are fixed at its start."""
    done = subprocess.run(
        [sys.executable, "-c", _ON_4_DEVICES],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", ["guidance", "controlled"])
def test_a_device_makes_its_images_without_a_word_from_the_others(program, collectives):
    assert collectives[program] == {}


def test_devices_that_optimise_ask_each_other_only_whether_one_goes_on(collectives):
    # A loop has one number of iterations on all devices: one boolean for each of them.
    assert collectives["optimised"] == {"all-reduce": [1, 1.0]}
