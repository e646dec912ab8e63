"""diffusers' UNet, small, as a network that jax can call and differentiate.

Papers' formulas are written with it in torch; what is compared is the formula, since the
network is the same one. Ours equals it by tests/models/test_unet.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

L, D = 6, 12
SIZES = (32, 64)
TYPES = ("epsilon", "v_prediction")


def make_unet():
    """Makes a UNet with weights large enough for text and noise to matter."""
    model = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=D,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = float("norm" in name and "weight" in name)
            parameter.normal_(mean, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


UNET = make_unet()


def in_torch(latents, timesteps, hidden):
    """Predicts in torch; latents are NHWC, as ours, and stay differentiable."""
    out = UNET(latents.permute(0, 3, 1, 2), timesteps, hidden).sample
    return out.permute(0, 2, 3, 1)


def _tensors(*arrays):
    return [torch.from_numpy(np.array(x)) for x in arrays]


def _forward(*arrays):
    with torch.no_grad():
        return in_torch(*_tensors(*arrays)).numpy()


def _backward(latents, timesteps, hidden, cotangent):
    x, t, h, pull = _tensors(latents, timesteps, hidden, cotangent)
    x.requires_grad_(), h.requires_grad_()
    grads = torch.autograd.grad(in_torch(x, t, h), (x, h), pull)
    return tuple(g.numpy() for g in grads)


@jax.custom_vjp
def predict(latents, timesteps, hidden):
    """Is the network in jax: (latents, timesteps, text) -> prediction."""
    shape = jax.ShapeDtypeStruct(latents.shape, jnp.float32)
    return jax.pure_callback(_forward, shape, latents, timesteps, hidden)


def _predict_forward(*inputs):
    return predict(*inputs), inputs


def _predict_backward(inputs, cotangent):
    latents, timesteps, hidden = inputs
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (latents, hidden))
    x, h = jax.pure_callback(_backward, shapes, *inputs, cotangent)
    return x, np.zeros(timesteps.shape, jax.dtypes.float0), h


predict.defvjp(_predict_forward, _predict_backward)
