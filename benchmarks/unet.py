"""Training step and forward pass of the demo's UNet against diffusers in torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import UNet2DConditionModel as TorchUNet

from benchmarks.timing import Row, best_of
from configs import demo
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.objective import denoising_loss
from copymit.models.assembly import make_model

_TOKENS = 16


def run() -> list[Row]:
    """Times AdamW training steps and forward passes of equal networks."""
    config = demo.get_config()
    B = config.train.batch_size
    model = make_model(config.model, config.data.resolution, "float32")
    width = config.model.text_encoder.hidden_size
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((B, *model.latent_shape), np.float32)
    text = rng.standard_normal((B, _TOKENS, width), np.float32)
    size = f"{B}x{'x'.join(map(str, model.latent_shape))}"

    step, forward = _ours(config, model, latents, text)
    torch_step, torch_forward = _torch(config, model, latents, text)
    return [
        Row(
            f"demo UNet training step, {size}",
            best_of(step),
            "diffusers in torch",
            best_of(torch_step),
        ),
        Row(
            f"demo UNet forward, {size}",
            best_of(forward),
            "diffusers in torch",
            best_of(torch_forward),
        ),
    ]


def _ours(config, model, latents, text):
    noise_scheduler = make_noise_scheduler(**config.diffusion)
    optimizer = optax.adamw(1e-4, weight_decay=1e-2)
    params = jax.jit(model.init)(jax.random.key(0))
    params = {"unet": params["unet"]}
    state = [params, optimizer.init(params), jax.random.key(1)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, key):
        def loss(params):
            predict = functools.partial(model.predict, params)
            return denoising_loss(predict, noise_scheduler, latents, text, key).mean()

        gradients = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step():
        state[0], state[1] = train_step(state[0], state[1], state[2])
        return state[0]

    timesteps = jnp.arange(len(latents))
    predict = jax.jit(model.predict)
    return step, lambda: predict(state[0], latents, timesteps, text)


def _torch(config, model, latents, text):
    unet = config.model.unet
    crossed = unet.cross_attention
    down = ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed]
    up = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)]
    network = TorchUNet(
        sample_size=model.latent_shape[0],
        in_channels=model.latent_shape[2],
        out_channels=model.latent_shape[2],
        down_block_types=down,
        up_block_types=up,
        block_out_channels=tuple(unet.block_out_channels),
        layers_per_block=unet.layers_per_block,
        cross_attention_dim=text.shape[-1],
        attention_head_dim=unet.num_attention_heads,
        use_linear_projection=unet.use_linear_projection,
        norm_num_groups=unet.norm_num_groups,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-2)
    x = torch.tensor(latents).permute(0, 3, 1, 2).contiguous()
    hidden, timesteps = torch.tensor(text), torch.arange(len(latents))

    def step():
        optimizer.zero_grad()
        prediction = network(x, timesteps, hidden).sample
        torch.nn.functional.mse_loss(prediction, torch.randn_like(x)).backward()
        optimizer.step()

    def forward():
        with torch.no_grad():
            network(x, timesteps, hidden)

    return step, forward
