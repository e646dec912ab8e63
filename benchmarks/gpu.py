"""Stable Diffusion 2.1's UNet on one GPU, against diffusers in torch, eager and compiled.

    python -m benchmarks.gpu

Random weights, bfloat16: a training step with AdamW of 16 and 64 latents of 32x32x4 and of
16 of 64x64x4, and 50 steps of sampling with guidance of 16 latents of 64x64x4. Each
measurement runs in a process of its own, so that its peak of memory is its own. Without a
GPU it says so. torch must be a build for the GPU, which the extra `test` is not.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

TASKS = {
    "training step, 16 x 32x32x4": ("train", 16, 32),
    "training step, 64 x 32x32x4": ("train", 64, 32),
    "training step, 16 x 64x64x4": ("train", 16, 64),
    "50-step sampling, 16 x 64x64x4": ("sample", 16, 64),
}
SIDES = ("copymit", "torch eager", "torch compile")
REPEATS = {"train": 8, "sample": 3}


def main() -> None:
    """Measures every side of every task and prints a table."""
    import jax

    if jax.default_backend() != "gpu":
        print("no GPU that jax knows is here: nothing to measure")
        return
    header = f"{'':32}" + "".join(f"{side:>30}" for side in SIDES)
    print(
        f"{jax.devices()[0].device_kind}, median, peak of memory, compilation\n{header}"
    )
    for task in TASKS:
        cells = [_measure(side, task) for side in SIDES]
        print(f"{task:32}" + "".join(f"{cell:>30}" for cell in cells), flush=True)


def _measure(side: str, task: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", side, task]
    # So that the peak is what was needed.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return "failed"
    found = json.loads(done.stdout.splitlines()[-1])
    return "{seconds:.4f} s {gib:.1f} GiB {compiling:.0f} s".format(**found)


def _time(function: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Returns the median of the calls, and the time of the first."""
    started = time.perf_counter()
    function()
    first, times = time.perf_counter() - started, []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2], first


def _copymit(kind: str, batch: int, size: int) -> tuple[Callable[[], Any], Callable]:
    """Returns what does the task once and waits, and what tells the peak in bytes."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import optax

    from copymit.diffusion.noise_scheduler import make_noise_scheduler
    from copymit.diffusion.sampler import sample, with_guidance
    from copymit.diffusion.trajectory import SAMPLERS
    from copymit.models.assembly import for_inference
    from copymit.models.functional import init_params, make_apply
    from copymit.models.unet import SD_2, UNet2DConditionModel

    config = dataclasses.replace(SD_2, sample_size=size)

    def make(rngs):
        return UNet2DConditionModel(config, dtype=jnp.bfloat16, rngs=rngs)

    apply, params = make_apply(make), init_params(make)
    latents = jax.random.normal(jax.random.key(0), (batch, size, size, 4))
    text = jax.random.normal(jax.random.key(1), (batch, 77, 1024), jnp.bfloat16)
    timesteps = jnp.arange(batch)

    def peak() -> int:
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]

    if kind == "sample":
        cast = jax.jit(for_inference, static_argnums=1, donate_argnums=0)
        params = cast({"unet": params}, "bfloat16")["unet"]
        trajectory = SAMPLERS["ddim"](make_noise_scheduler(), 50)

        @jax.jit
        def generate(params, latents, text):
            predict = functools.partial(apply, params)
            denoise = with_guidance(predict, text, jnp.zeros_like(text), 7.5)
            return sample(denoise, trajectory, latents)

        return lambda: jax.block_until_ready(generate(params, latents, text)), peak

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
        state[0], state[1] = train_step(*state, jax.random.key(2))
        jax.block_until_ready(state)

    return step, peak


def _torch(
    kind: str, batch: int, size: int, *, compiled: bool
) -> tuple[Callable[[], Any], Callable]:
    """The same with diffusers: bfloat16, channels last, fused AdamW."""
    import torch
    from diffusers import DDIMScheduler
    from diffusers import UNet2DConditionModel as TorchUNet

    from benchmarks.unet import SIZES

    options = dict(SIZES["sd2"])
    crossed = options.pop("cross_attention")
    down = ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed]
    up = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)]
    options["attention_head_dim"] = options.pop("num_attention_heads")
    network = TorchUNet(
        sample_size=size, down_block_types=down, up_block_types=up, **options
    ).to("cuda", memory_format=torch.channels_last)
    latents = torch.randn(batch, 4, size, size, device="cuda")
    latents = latents.to(memory_format=torch.channels_last)
    text = torch.randn(batch, 77, 1024, device="cuda", dtype=torch.bfloat16)
    timesteps = torch.arange(batch, device="cuda")
    peak = torch.cuda.max_memory_allocated
    if kind == "sample":
        network, latents = network.to(torch.bfloat16), latents.to(torch.bfloat16)
    call = torch.compile(network) if compiled else network

    @torch.no_grad()
    def generate():
        scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
        scheduler.set_timesteps(50)
        context, x = torch.cat([torch.zeros_like(text), text]), latents
        for t in scheduler.timesteps.to("cuda"):
            unconditional, conditional = call(
                torch.cat([x] * 2), t, context
            ).sample.chunk(2)
            guided = unconditional + 7.5 * (conditional - unconditional)
            x = scheduler.step(guided, t, x).prev_sample
        torch.cuda.synchronize()

    if kind == "sample":
        return generate, peak
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1e-4, weight_decay=1e-2, fused=True
    )

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            prediction = call(latents, timesteps, text).sample
        target = torch.randn_like(latents)
        torch.nn.functional.mse_loss(prediction.float(), target).backward()
        optimizer.step()
        torch.cuda.synchronize()

    return step, peak


if __name__ == "__main__":
    if not sys.argv[1:]:
        main()
    else:
        side, task = sys.argv[1:]
        kind, batch, size = TASKS[task]
        make = {
            "copymit": _copymit,
            "torch eager": functools.partial(_torch, compiled=False),
            "torch compile": functools.partial(_torch, compiled=True),
        }[side]
        function, peak = make(kind, batch, size)
        seconds, first = _time(function, REPEATS[kind])
        print(
            json.dumps(
                {
                    "seconds": seconds,
                    "gib": peak() / 2**30,
                    "compiling": first - seconds,
                }
            )
        )
