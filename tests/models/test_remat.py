"""Rematerialisation changes memory, not the gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.functional import init_params, make_apply
from copymit.models.unet import UNet2DConditionModel, UNetConfig

POLICIES = ("none", "products", "blocks")


def make(remat, rngs):
    config = UNetConfig(
        sample_size=16,
        block_out_channels=(16,),
        cross_attention=(True,),
        num_attention_heads=2,
        layers_per_block=1,
        cross_attention_dim=8,
        norm_num_groups=4,
        remat=remat,
    )
    return UNet2DConditionModel(config, rngs=rngs)


@pytest.fixture(scope="module")
def losses():
    """The loss under each policy, and parameters to apply it to."""
    params = init_params(functools.partial(make, "none"))
    rng = np.random.default_rng(0)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    # Zero-initialised layers would hide most gradients.
    params = {name: x + 0.1 * normal(x.shape) for name, x in params.items()}
    latents, text = normal((4, 16, 16, 4)), normal((4, 5, 8))

    def make_loss(remat):
        apply = make_apply(functools.partial(make, remat))
        return lambda p: jnp.mean(apply(p, latents, jnp.arange(4), text) ** 2)

    return {remat: make_loss(remat) for remat in POLICIES}, params


@pytest.fixture(scope="module")
def gradients(losses):
    losses, params = losses
    return {remat: jax.jit(jax.grad(loss))(params) for remat, loss in losses.items()}


@pytest.mark.parametrize("remat", ["products", "blocks"])
def test_gradients_do_not_change(remat, gradients):
    found, expected = gradients[remat], gradients["none"]
    largest = max(np.abs(g).max() for g in expected.values())
    for name in found:
        # The compiler fuses the recomputed sums in another order.
        np.testing.assert_allclose(
            found[name], expected[name], atol=1e-5 * largest, err_msg=name
        )


def test_less_is_remembered(losses):
    losses, params = losses

    def remembered_bytes(remat):
        backward = jax.eval_shape(lambda p: jax.vjp(losses[remat], p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    none, products, blocks = map(remembered_bytes, POLICIES)
    assert blocks < 0.6 * products < 0.6 * 0.9 * none


def test_an_unknown_policy_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"remat"):
        UNetConfig(remat="all")
