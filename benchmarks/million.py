"""A million references and ten thousand generations, end to end, with kills.

    python -m benchmarks.million FOLDER [NUM_REFERENCES NUM_GENERATIONS]

Makes random images in FOLDER (5 GB with the results), evaluates them in a process of
its own and prints its time and peak memory; then evaluates them anew in a process that
is killed (SIGKILL) at random times and started again, and says whether `scores.json` has
the same bytes. Half of the generations are noisy copies of references.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIZE_PX = 16
BLOCK = 100_000
NUM_KILLS = 4
LONGEST_LIFE_SECONDS = 240  # of a million


def main(
    folder: str, num_references: int = 1_000_000, num_generations: int = 10_000
) -> None:
    """Makes the images, evaluates them twice and compares."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    make_images(root, num_references, num_generations)
    started = time.perf_counter()
    subprocess.run(command(root, "whole"), check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    seconds = time.perf_counter() - started
    print(f"whole: {seconds:.0f} s, peak memory {peak:.2f} GiB", flush=True)
    interrupt(root, num_references / 1e6)
    texts = [
        (root / name / "eval" / "images" / "scores.json").read_bytes()
        for name in ("whole", "killed")
    ]
    print("scores.json: " + ("the same bytes" if texts[0] == texts[1] else "DIFFERENT"))


def make_images(root: Path, num_references: int, num_generations: int) -> None:
    """Writes smooth random images as arrays on disk."""
    shape = (num_references, SIZE_PX, SIZE_PX, 3)
    references = np.lib.format.open_memmap(
        root / "references.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    rng = np.random.default_rng(0)
    for start in range(0, num_references, BLOCK):
        count = min(BLOCK, num_references - start)
        coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        references[start : start + count] = coarse.repeat(4, axis=1).repeat(4, axis=2)
    copied = np.array(references[: num_generations // 2], np.int16)
    copied += rng.integers(-30, 31, copied.shape, dtype=np.int16)
    fresh = rng.integers(
        0, 256, (num_generations - len(copied), 4, 4, 3), dtype=np.uint8
    )
    made = [copied.clip(0, 255).astype(np.uint8), fresh.repeat(4, 1).repeat(4, 2)]
    np.save(root / "generations.npy", np.concatenate(made))


def command(root: Path, name: str) -> list[str]:
    """Is the evaluation as a command; the same one goes on after a kill."""
    call = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from copymit.evaluation import evaluate\n"
        f"evaluate({str(root / 'generations.npy')!r}, {str(root / 'references.npy')!r}, "
        f"workdir={str(root / name)!r}, name='images', "
        "embedders=('pixels_16',), batch_size=1024)"
    )
    return [sys.executable, "-c", call]


def interrupt(root: Path, millions: float) -> None:
    """Starts the evaluation again and again, and lets the last start finish."""
    lives = random.Random(0)
    for number in range(NUM_KILLS):
        seconds = lives.uniform(20, 20 + LONGEST_LIFE_SECONDS * millions)
        process = subprocess.Popen(command(root, "killed"))
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed start {number} after {seconds:.0f} s", flush=True)
    subprocess.run(command(root, "killed"), check=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(sys.argv[1], *map(int, sys.argv[2:]))
