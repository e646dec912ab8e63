"""The UNet against diffusers' in torch: forward pass, training step and sampling.

Each side runs in a process of its own, since two full-size UNets with AdamW's moments do
not fit in 24 GiB:

    python -m benchmarks.unet SIDE SIZE TASK [STEPS]    prints the seconds of one

SIDE is `copymit` or `torch`; STEPS are the sampler's, where 50 would take too long.

`small` has 16.8 M parameters, batch 16; `sd2` is Stable Diffusion 2.1's UNet of 865.9 M,
batch 1; both at 32x32x4 latents and 77 tokens, in float32. `benchmarks.gpu` has others, in
bfloat16.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import ON_CPU, Row, best_of

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "block_out_channels": (64, 128, 256),
        "cross_attention": (True, True, True),
        "layers_per_block": 1,
        "cross_attention_dim": 128,
        "num_attention_heads": 8,
        "use_linear_projection": False,
    },
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention": (True, True, True, False),
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "num_attention_heads": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
BATCH_SIZES = {"small": 16, "sd2": 1}
# Sampling is 50 steps with guidance, a batch of two for each image.
SAMPLED_IMAGES = {"small": 2, "sd2": 1}
REPEATS = {"forward": 5, "training step": 3, "50-step sampling": 1}
TASKS = tuple(REPEATS)
SAMPLER_STEPS = 50
GUIDANCE_SCALE = 7.5


def run() -> list[Row]:
    """Times both sides in turn, each in a new process."""
    rows = []
    for size in SIZES:
        for task in TASKS:
            seconds = [_measure(side, size, task) for side in ("copymit", "torch")]
            images = SAMPLED_IMAGES if "sampling" in task else BATCH_SIZES
            name = f"{size} UNet {task}, {images[size]}x32x32x4"
            rows.append(Row(name, seconds[0], "diffusers in torch", seconds[1]))
    return rows


def _measure(side: str, size: str, task: str) -> float:
    command = [sys.executable, "-m", "benchmarks.unet", side, size, task]
    environment = os.environ | ON_CPU
    done = subprocess.run(
        command, check=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


def make_inputs(
    size: str, batch: int, pixels: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Draws latents and embedded captions."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((batch, pixels, pixels, 4), np.float32)
    text = (batch, 77, SIZES[size]["cross_attention_dim"])
    return latents, rng.standard_normal(text, np.float32)


def make_copymit(
    size: str, task: str, inputs, dtype: str = "float32", steps: int = SAMPLER_STEPS
) -> Callable:
    """Returns a function that does the task once in copymit.

    Args:
      inputs: latents and captions.
      dtype: what the network computes in.
      steps: of the sampler.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from copymit.diffusion.noise_scheduler import make_noise_scheduler
    from copymit.diffusion.sampler import sample, with_guidance
    from copymit.diffusion.trajectory import SAMPLERS
    from copymit.models.assembly import for_inference
    from copymit.models.functional import init_params, make_apply
    from copymit.models.unet import UNet2DConditionModel, UNetConfig

    latents, text = map(jnp.asarray, inputs)
    config = UNetConfig(sample_size=latents.shape[1], **SIZES[size])

    def make(rngs):
        return UNet2DConditionModel(config, dtype=jnp.dtype(dtype), rngs=rngs)

    apply = make_apply(make)
    params = init_params(make)
    timesteps = jnp.arange(len(latents))

    if task != "training step":
        cast = jax.jit(for_inference, static_argnums=1, donate_argnums=0)
        params = cast({"unet": params}, dtype)["unet"]
    if task == "forward":
        predict = jax.jit(apply)
        return lambda: predict(params, latents, timesteps, text)
    if task == "50-step sampling":
        trajectory = SAMPLERS["ddim"](make_noise_scheduler(), steps)

        @jax.jit
        def generate(params, latents, text):
            predict = functools.partial(apply, params)
            denoise = with_guidance(predict, text, jnp.zeros_like(text), GUIDANCE_SCALE)
            return sample(denoise, trajectory, latents)

        return lambda: generate(params, latents, text)

    optimizer = optax.adamw(1e-4, weight_decay=1e-2)
    state = [params, jax.jit(optimizer.init)(params)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, key):
        def loss(params):
            target = jax.random.normal(key, latents.shape)
            return jnp.mean((apply(params, latents, timesteps, text) - target) ** 2)

        gradients = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step():
        state[0], state[1] = train_step(state[0], state[1], jax.random.key(1))
        return state

    return step


def make_torch(
    size: str,
    task: str,
    inputs,
    dtype: str = "float32",
    steps: int = SAMPLER_STEPS,
    *,
    compiled: bool = False,
) -> Callable:
    """Returns a function that does the task once in diffusers, on a GPU if one is here.

    Args:
      inputs: latents and captions.
      dtype: what the network computes in; training keeps its parameters in float32.
      steps: of the sampler.
      compiled: by `torch.compile`.
    """
    import torch
    from diffusers import DDIMScheduler
    from diffusers import UNet2DConditionModel as TorchUNet

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    kind = getattr(torch, dtype)
    latents, text = (torch.tensor(x, device=device) for x in inputs)
    latents = latents.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    timesteps = torch.arange(len(latents), device=device)

    options = dict(SIZES[size])
    crossed = options.pop("cross_attention")
    down = ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed]
    up = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)]
    options["attention_head_dim"] = options.pop("num_attention_heads")
    network = TorchUNet(
        sample_size=latents.shape[-1],
        down_block_types=down,
        up_block_types=up,
        **options,
    ).to(device, memory_format=layout)
    if task != "training step":
        network = network.to(kind)
        latents, text = latents.to(kind), text.to(kind)
    call = torch.compile(network) if compiled else network

    @torch.no_grad()
    def forward():
        call(latents, timesteps, text)

    @torch.no_grad()
    def generate():
        scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
        scheduler.set_timesteps(steps)
        context = torch.cat([torch.zeros_like(text), text])
        x = latents
        for t in scheduler.timesteps.to(device):
            unconditional, conditional = call(
                torch.cat([x] * 2), t, context
            ).sample.chunk(2)
            guided = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            x = scheduler.step(guided, t, x).prev_sample

    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, weight_decay=1e-2, fused=on_gpu
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, kind, enabled=dtype != "float32"):
            prediction = call(latents, timesteps, text).sample
        target = torch.randn_like(latents)
        torch.nn.functional.mse_loss(prediction.float(), target).backward()
        optimizer.step()

    function = {"forward": forward, "50-step sampling": generate, "training step": step}
    return function[task]


if __name__ == "__main__":
    side, size, task, *steps = sys.argv[1:]
    images = SAMPLED_IMAGES if "sampling" in task else BATCH_SIZES
    make = {"copymit": make_copymit, "torch": make_torch}[side]
    number = int(steps[0]) if steps else SAMPLER_STEPS
    function = make(size, task, make_inputs(size, images[size]), steps=number)
    print(best_of(function, REPEATS[task]))
