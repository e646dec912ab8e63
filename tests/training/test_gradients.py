"""A batch in parts is the batch: its draws, its loss, its gradients, its one step.

The networks are small enough to be seen through, and not linear in anything.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.diffusion.noise_scheduler import add_noise, make_noise_scheduler
from copymit.models.assembly import DiffusionModel
from copymit.models.functional import Parameter
from copymit.models.initializers import normal
from copymit.sharding import make_mesh
from copymit.training.gradients import make_batch_gradients
from copymit.training.state import abstract_state, init_state, make_optimizer
from copymit.training.step import make_train_step, seed_key

SHAPE, WIDTH, WORDS, LENGTH = (4, 4, 2), 8, 11, 3
EMPTY = np.zeros(LENGTH, np.int32)


def parameter(*shape):
    return Parameter(shape, jnp.float32, normal(0.5))


PARAMETERS = {
    "unet": {"text.kernel": parameter(WIDTH, 2), "latents.kernel": parameter(2, 2)},
    "text_encoder": {"words.kernel": parameter(WORDS, WIDTH)},
    "vae": {"pixels.kernel": parameter(3, 2)},
}


def predict(params, latents, timesteps, hidden):
    text = jnp.tanh(hidden.mean(1) @ params["unet"]["text.kernel"])
    mixed = jnp.tanh(latents @ params["unet"]["latents.kernel"])
    return mixed * text[:, None, None] + timesteps[:, None, None, None] / 1000


def encode_images(params, pixel_values):
    return pixel_values @ params["vae"]["pixels.kernel"]


def sample_latents(moments, key):
    return moments + 0.1 * jax.random.normal(key, moments.shape)


def encode_text(params, ids):
    return jnp.tanh(params["text_encoder"]["words.kernel"][ids])


MODEL = DiffusionModel(
    SHAPE,
    PARAMETERS,
    encode_images,
    sample_latents,
    lambda params, latents: latents,
    predict,
    encode_text,
)


def make_config(parts, *, train_text=True, mitigations=None, **train):
    config = tiny.get_config()
    config.model.text_encoder.train = train_text
    config.train.update(batch_size=8, accumulate_steps=parts, warmup_steps=2, **train)
    config.mitigation.train.update(mitigations or {})
    return config


def make_batch(step=0):
    rng = np.random.default_rng(step)
    return {
        "pixel_values": rng.integers(0, 256, (8, 4, 4, 3), np.uint8),
        "input_ids": rng.integers(0, WORDS, (8, LENGTH)).astype(np.int32),
    }


def train(config, steps=3):
    """Returns the state after some steps, and the scalars of each."""
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    abstract = abstract_state(MODEL, optimizer, config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    scheduler = make_noise_scheduler()
    step = make_train_step(MODEL, scheduler, optimizer, config, shardings, mesh, EMPTY)
    state = init_state(MODEL, optimizer, config, mesh)
    history = []
    with jax.set_mesh(mesh):
        for i in range(steps):
            state, scalars = step(state, make_batch(i), seed_key(config.seed))
            history.append({k: float(v) for k, v in scalars.items()})
    return jax.device_get(state), history


SKIP = 30.0  # leaves some examples out, and not all
EVERYTHING = {"gaussian_noise": 0.3, "embedding_mixup": 2.0, "skip_above": SKIP}
SETTINGS = [
    {},
    {"train_text": False},
    {"noise_offset": 0.1, "input_perturbation": 0.1, "min_snr_gamma": 5.0},
    {"mitigations": EVERYTHING},
    {"lora_rank": 2, "lora_targets": ("text", "latents", "words")},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("parts", [2, 8])
def test_a_step_in_parts_is_the_step(settings, parts):
    whole, expected = train(make_config(1, **settings))
    in_parts, found = train(make_config(parts, **settings))
    if "mitigations" in settings:
        assert 0 < expected[0]["skipped_share"] < 1
    assert int(in_parts.step) == 3
    for one, other in zip(found, expected, strict=True):
        # Sums over eight examples in another order.
        assert one == pytest.approx(other, rel=1e-5)
    # Adam divides what differs by rounding by its own size.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        in_parts,
        whole,
    )


@pytest.mark.parametrize("parts", [1, 4])
def test_the_gradient_is_that_of_the_mean_over_the_batch(parts):
    config = make_config(parts)
    scheduler = make_noise_scheduler()
    state = init_state(MODEL, make_optimizer(config.train), config, make_mesh())
    batch, key = make_batch(), jax.random.key(3)
    gradients = make_batch_gradients(MODEL, scheduler, config, EMPTY)
    found = jax.jit(gradients)(
        state.params, state.frozen, batch, key, jax.random.key(4)
    )

    def mean_loss(params):
        latents_key, noise_key = jax.random.split(key)
        timestep_key, noise_key = jax.random.split(noise_key)
        pixels = batch["pixel_values"].astype(jnp.float32) / 127.5 - 1
        moments = encode_images(state.frozen, pixels)
        latents = sample_latents(moments, latents_key)
        timesteps = jax.random.randint(timestep_key, (8,), 0, 1000)
        noise = jax.random.normal(noise_key, latents.shape)
        noisy = add_noise(scheduler, latents, noise, timesteps)
        hidden = encode_text(params, batch["input_ids"])
        return jnp.mean((predict(params, noisy, timesteps, hidden) - noise) ** 2)

    loss, expected = jax.value_and_grad(mean_loss)(state.params)
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-6)
    assert float(found.kept) == 1
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        found.gradients,
        expected,
    )


def weights(**settings):
    state, _ = train(make_config(2, mitigations=EVERYTHING, **settings))
    return {k: v.tolist() for k, v in sorted(state.params["unet"].items())}


def test_parts_are_the_same_on_four_devices():
    script = (
        "import jax, json, test_gradients as t; assert jax.device_count() == 4; "
        "print(json.dumps(t.weights()))"
    )
    here = Path(__file__).parent
    environment = {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]),
        "XLA_FLAGS": os.environ["XLA_FLAGS"]
        + " --xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for found, expected in zip(
        json.loads(done.stdout).values(), weights().values(), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
