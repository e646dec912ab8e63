"""Skipping what is being memorised, by the norm of the effect of its caption."""

import jax
import jax.numpy as jnp
import numpy as np

from copymit.mitigation.methods.skipping import keep_unremembered


def test_an_example_is_kept_while_its_caption_changes_little(rng):
    unconditional = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)
    directions = rng.normal(size=(3, 4, 4, 2))
    directions /= np.linalg.norm(directions.reshape(3, -1), axis=1)[:, None, None, None]
    norms = np.array([0.5, 1.9, 2.1])
    unit = (64 * 64 * 4 / (4 * 4 * 2)) ** 0.5  # norms are as of 64x64x4
    conditional = unconditional + norms[:, None, None, None] * directions
    kept = keep_unremembered(conditional - unconditional, 2.0 * unit)
    assert kept.tolist() == [True, True, False]


def test_no_gradient_flows_through_the_choice(rng):
    x = jnp.asarray(rng.normal(size=(2, 2, 2, 1)), jnp.float32)

    def loss(y):
        return jnp.sum(jnp.where(keep_unremembered(y, 100.0), 1.0, 0.0) * 3)

    assert not np.asarray(jax.grad(loss)(x)).any()
