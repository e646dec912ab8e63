"""Mitigations in a step of training, with a network of which all is known.

It predicts, everywhere, the embedding of the first token times a weight of its own.
"""

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
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.models.assembly import DiffusionModel
from copymit.models.functional import Parameter
from copymit.sharding import make_mesh
from copymit.training.state import abstract_state, init_state, make_optimizer
from copymit.training.step import make_train_step, seed_key

SHAPE = (4, 4, 1)
ROOT = 4.0  # of the number of latents
WEIGHTS = np.array([0.0, 0.1, 5.0, 0.2, 7.0], np.float32)
EMPTY = np.zeros(1, np.int32)


def predict(params, latents, timesteps, hidden):
    del timesteps
    value = hidden[:, 0] @ params["unet"]["weights"]
    return jnp.broadcast_to(value[:, None, None, None], latents.shape)


MODEL = DiffusionModel(
    SHAPE,
    {
        "unet": {"weights": Parameter(WEIGHTS.shape, jnp.float32, None)},
        "text_encoder": {},
    },
    lambda params, pixel_values: pixel_values,
    lambda moments, key: moments,
    lambda params, latents: latents,
    predict,
    lambda params, ids: jax.nn.one_hot(ids, len(WEIGHTS)),
)


def train(ids, steps=1, seed=0, weight_decay=0.0, **mitigations):
    """Returns weights and scalars after each step on a batch of these token ids.

    Of several batches, each has a step.
    """
    batches = np.asarray(ids, np.int32)
    batches = batches if batches.ndim == 2 else np.tile(batches, (steps, 1))
    config = tiny.get_config()
    if "skip_above" in mitigations:  # a norm as of 64x64x4 latents
        mitigations["skip_above"] *= 128 / ROOT
    config.mitigation.train.update(mitigations)
    config.train.update(ema_decay=0.0, weight_decay=weight_decay, warmup_steps=0)
    optimizer, mesh = make_optimizer(config.train), make_mesh()
    abstract = abstract_state(MODEL, optimizer, config, mesh)
    step = make_train_step(
        MODEL,
        make_noise_scheduler(),
        optimizer,
        config,
        jax.tree.map(lambda x: x.sharding, abstract),
        mesh,
        EMPTY,
    )
    moments = np.zeros((batches.shape[1], *SHAPE), np.float32)
    networks = {"unet": {"weights": jnp.asarray(WEIGHTS)}, "text_encoder": {}}
    state = init_state(MODEL, optimizer, config, mesh, networks)
    history = []
    with jax.set_mesh(mesh):
        for input_ids in batches[:, :, None]:
            batch = {"moments": moments, "input_ids": input_ids}
            state, scalars = step(state, batch, seed_key(seed))
            weights = np.asarray(state.params["unet"]["weights"])
            history.append((weights, {k: float(v) for k, v in scalars.items()}))
    return history


def test_without_mitigation_every_caption_teaches():
    ((weights, scalars),) = train([1, 2, 3, 4])
    assert (weights[1:] != WEIGHTS[1:]).all()
    assert "skipped_share" not in scalars


@pytest.mark.parametrize(
    ("threshold", "kept"), [(1.0, [1, 3]), (6.0 * ROOT, [1, 2, 3])]
)
def test_captions_above_the_threshold_teach_nothing(threshold, kept):
    # The captions change the prediction by their weights times the root of 16.
    ((weights, scalars),) = train([1, 2, 3, 4], skip_above=threshold)
    assert np.flatnonzero(weights != WEIGHTS).tolist() == kept
    assert scalars["skipped_share"] == 1 - len(kept) / 4


def test_a_batch_of_which_all_is_skipped_teaches_nothing():
    ((weights, scalars),) = train([2, 4], skip_above=1.0)
    assert (weights == WEIGHTS).all()
    assert (scalars["skipped_share"], scalars["loss"]) == (1.0, 0.0)


def test_momentum_and_decay_wait_while_all_is_skipped():
    batches = [[1, 3], [2, 4], [1, 3]]
    history = train(batches, skip_above=1.0, weight_decay=0.1)
    (first, _), (skipped, scalars), (last, _) = history
    assert scalars["skipped_share"] == 1
    assert (skipped == first).all()
    assert (first[1:] != WEIGHTS[1:]).all()  # by decay, where not by a gradient
    assert (last[1:] != first[1:]).all()
    rates = [scalars["learning_rate"] for _, scalars in history]
    (_, plain) = zip(*train([1, 3], steps=3), strict=True)
    assert rates == [scalars["learning_rate"] for scalars in plain]


@pytest.mark.parametrize("strength", [5.0, 50.0])
def test_noise_on_the_text_has_its_strength_and_is_another_at_every_step(strength):
    # The empty caption predicts 0, a loss of 1; noise adds its variance times the norm.
    losses = np.array(
        [s["loss"] for _, s in train([0] * 2048, steps=2, gaussian_noise=strength)]
    )
    expected = 1 + strength**2 * (WEIGHTS**2).sum()
    # Deviation of a mean of 2,048 squares of normal numbers: 3 %.
    np.testing.assert_allclose(losses, expected, rtol=0.15)
    # The other noise, of the latents, changes them by less than a thousandth.
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_noise_is_that_of_the_seed_and_step():
    ((_, first),), ((_, again),), ((_, other),) = (
        train([1, 2], seed=seed, gaussian_noise=9.0) for seed in (0, 0, 1)
    )
    assert first == again
    assert other["loss"] != pytest.approx(first["loss"], rel=1e-3)


def test_mixup_mixes_captions():
    histories = [train([2, 4], seed=s, embedding_mixup=1.0) for s in range(4)]
    losses = [history[0][1]["loss"] for history in histories]
    plain = train([2, 4])[0][1]["loss"]
    # A mean of 5 and 7 has less of a square than both.
    assert min(losses) < plain - 0.3


# The noise dominates the loss.
RANDOM = {"gaussian_noise": 9.0, "embedding_mixup": 1.0, "skip_above": 200.0}
IDS = [1, 2, 3, 4] * 4


def losses_and_shares(**mitigations):
    history = train(IDS, steps=2, **mitigations)
    return [[s["loss"], s["skipped_share"]] for _, s in history]


def test_mitigations_do_not_depend_on_the_number_of_devices():
    script = (
        "import jax, json, test_mitigated_step as t; assert jax.device_count() == 4; "
        "print(json.dumps(t.losses_and_shares(**t.RANDOM)))"
    )
    here = Path(__file__).parent
    environment = {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = losses_and_shares(**RANDOM)
    assert 0 < expected[0][1] < 1  # some are skipped
    # Sums over a batch are taken in another order.
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-5)
