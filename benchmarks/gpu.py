"""One GPU against torch: Stable Diffusion 2.1's UNet, and the embedders.

    python -m benchmarks.gpu

The UNet has random weights and computes in bfloat16: a training step with AdamW of 16 and
64 latents of 32x32x4 and of 16 of 64x64x4, and 50 steps of sampling with guidance of 16
latents of 64x64x4, against diffusers, eager and compiled. Embedders: images a second,
batches of 128, against eager torch. Each measurement runs in a process of its own, so that
its peak of memory is its own. Without a GPU it says so and exits with 0. torch must be a
build for the GPU, which the extra `test` is not; Inception's peer is torchvision's.
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
    "training step, 16 x 32x32x4": ("training step", 16, 32),
    "training step, 64 x 32x32x4": ("training step", 64, 32),
    "training step, 16 x 64x64x4": ("training step", 16, 64),
    "50-step sampling, 16 x 64x64x4": ("50-step sampling", 16, 64),
}
SIZE = "sd2"  # of benchmarks.unet
SIDES = ("copymit", "torch eager", "torch compile")
REPEATS = {"training step": 8, "50-step sampling": 3}
EMBEDDERS = ("SSCD ResNet-50", "Inception-v3", "DINOv2 ViT-S/14")
EMBEDDED_IMAGES = 128


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
        cells = [_measure_unet(side, task) for side in SIDES]
        print(f"{task:32}" + "".join(f"{cell:>30}" for cell in cells), flush=True)
    for name in EMBEDDERS:
        cells = [_measure_embedder(side, name) for side in ("copymit", "torch")]
        print(f"{name:32}" + "".join(f"{cell:>30}" for cell in cells), flush=True)


def _measure_unet(side: str, task: str) -> str:
    found = _run("benchmarks.gpu", side, task)
    if found is None:
        return "failed"
    return "{seconds:.4f} s {gib:.1f} GiB {compiling:.0f} s".format(**json.loads(found))


def _measure_embedder(side: str, name: str) -> str:
    found = _run("benchmarks.embedding", side, name, str(EMBEDDED_IMAGES))
    return (
        "failed" if found is None else f"{EMBEDDED_IMAGES / float(found):,.0f} images/s"
    )


def _run(module: str, *arguments: str) -> str | None:
    """Returns the last line that a program prints, or nothing if it fails."""
    # So that the peak is what was needed.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return None if done.returncode else done.stdout.splitlines()[-1]


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


def _copymit(task: str, inputs) -> tuple[Callable[[], Any], Callable[[], int]]:
    """Returns what does the task once and waits, and what tells the peak in bytes."""
    import jax

    from benchmarks.unet import make_copymit

    function = make_copymit(SIZE, task, inputs, "bfloat16")

    def peak() -> int:
        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]

    return lambda: jax.block_until_ready(function()), peak


def _torch(
    task: str, inputs, *, compiled: bool
) -> tuple[Callable[[], Any], Callable[[], int]]:
    """The same with diffusers."""
    import torch

    from benchmarks.unet import make_torch

    function = make_torch(SIZE, task, inputs, "bfloat16", compiled=compiled)

    def call():
        function()
        torch.cuda.synchronize()

    return call, torch.cuda.max_memory_allocated


def _print_unet(side: str, name: str) -> None:
    """Measures one side of one task, and prints what was found."""
    from benchmarks.unet import make_inputs

    task, batch, size = TASKS[name]
    make = {
        "copymit": _copymit,
        "torch eager": functools.partial(_torch, compiled=False),
        "torch compile": functools.partial(_torch, compiled=True),
    }[side]
    function, peak = make(task, make_inputs(SIZE, batch, size))
    seconds, first = _time(function, REPEATS[task])
    found = {"seconds": seconds, "gib": peak() / 2**30, "compiling": first - seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:]:
        _print_unet(*sys.argv[1:])
    else:
        main()
