"""The step as a program: what it depends on when it is compiled."""

import jax
import numpy as np

from configs import tiny
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.models.assembly import make_model
from copymit.sharding import make_mesh
from copymit.training.state import abstract_state, make_optimizer
from copymit.training.step import make_train_step, seed_key


def lower(**changes) -> str:
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    mesh = make_mesh()
    model = make_model(config.model, config.data.resolution, config.train.dtype)
    optimizer = make_optimizer(config.train)
    abstract = abstract_state(model, optimizer, config, mesh)
    step = make_train_step(
        model,
        make_noise_scheduler(**config.diffusion),
        optimizer,
        config,
        jax.tree.map(lambda x: x.sharding, abstract),
        mesh,
        np.zeros(config.model.text_encoder.max_length, np.int32),
    )
    size, length = config.train.batch_size, config.model.text_encoder.max_length
    batch = {
        "pixel_values": jax.ShapeDtypeStruct((size, 16, 16, 3), np.uint8),
        "input_ids": jax.ShapeDtypeStruct((size, length), np.int32),
    }
    with jax.set_mesh(mesh):
        return step.lower(abstract, batch, seed_key(config.seed)).as_text()


def test_seeds_share_one_program():
    first = lower(seed=0)
    assert lower(seed=7) == first
    assert lower(**{"train.learning_rate": 1e-3}) != first


def test_the_key_of_a_seed_is_that_of_jax():
    for seed in (0, 7, 2**31 - 1):
        wrapped = jax.random.wrap_key_data(seed_key(seed))
        assert jax.random.uniform(wrapped) == jax.random.uniform(jax.random.key(seed))
