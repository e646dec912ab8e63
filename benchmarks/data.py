"""The input pipeline against torch's DataLoader: images a second from a folder of JPEGs.

    python -m benchmarks.data SIDE FOLDER    prints the seconds of one pass

The peer reads the same files with Pillow and the transforms that torchvision applies to
them (Resize, CenterCrop, flip), as the original code does; ours draws by the schedule and
tokenises a caption, too. Both have two worker processes, batches of 64 and 64 pixels.
FOLDER holds `CLASS/*.jpg`; COPYMIT_PHOTOS names it for `make bench`, which otherwise
makes photo-like JPEGs of 256 pixels.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from benchmarks.timing import Row

SIZE_PX = 64
BATCH_SIZE = 64
NUM_WORKERS = 2
NUM_BATCHES = 40


def run() -> list[Row]:
    """Times both sides in turn, each in a new process."""
    with tempfile.TemporaryDirectory() as made:
        folder = os.environ.get("COPYMIT_PHOTOS") or make_photos(Path(made) / "photos")
        seconds = {side: [] for side in ("copymit", "torch")}
        for _ in range(2):
            for side, times in seconds.items():
                times.append(_measure(side, str(folder)))
    name = f"pipeline, {NUM_BATCHES} batches of {BATCH_SIZE} at {SIZE_PX} px"
    best = {side: min(times) for side, times in seconds.items()}
    return [Row(name, best["copymit"], "DataLoader, Pillow", best["torch"])]


def _measure(side: str, folder: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", side, folder],
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.split()[-1])


def make_photos(folder: Path, count: int = 800) -> Path:
    """Writes smooth random images as JPEGs of quality 90."""
    rng = np.random.default_rng(0)
    (folder / "some").mkdir(parents=True)
    for i in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        image = noise.resize((320, 256), Image.Resampling.BICUBIC)
        image = image.filter(ImageFilter.GaussianBlur(2))
        image.save(folder / "some" / f"{i:04d}.jpg", quality=90)
    return folder


def read_here(folder: str) -> float:
    """Times copymit's pipeline, after its first batch."""
    from copymit.data.captions import make_caption_function
    from copymit.data.pipeline import Draws, Images, iterate_batches
    from copymit.data.schedule import make_schedule
    from copymit.data.sources import load_source
    from copymit.data.tokenizer import make_tokenizer

    source = load_source(folder)
    indices = np.arange(len(source))
    tokenizer = make_tokenizer()
    draws = Draws(
        Images(source, indices, SIZE_PX, None),
        np.zeros(len(source), bool),
        make_schedule(np.ones(len(source), np.int64), "epochs", 0),
        make_caption_function("instance", "none", (), decode=tokenizer.decode, seed=0),
        tokenizer.encode,
        num_steps=NUM_BATCHES + 1,
        batch_size=BATCH_SIZE,
        caption_dropout=0.1,
        random_flip=True,
        process_index=0,
        process_count=1,
    )
    batches = iterate_batches(draws, 0, num_threads=1, num_workers=NUM_WORKERS)
    return _time(batches, lambda batch: batch["pixel_values"])


class _Photos:
    """A map-style data set with torchvision's transforms, written with Pillow."""

    def __init__(self, folder: str):
        self.paths = sorted(Path(folder).glob("*/*"))
        self.count = (NUM_BATCHES + 1) * BATCH_SIZE

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        import torch

        with Image.open(self.paths[index % len(self.paths)]) as opened:
            image = opened.convert("RGB")
        short = min(image.size)
        width, height = (SIZE_PX * side // short for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - SIZE_PX) / 2), round((height - SIZE_PX) / 2)
        image = image.crop((left, top, left + SIZE_PX, top + SIZE_PX))
        if torch.rand(1) < 0.5:
            image = ImageOps.mirror(image)
        return torch.from_numpy(np.array(image))


def read_with_torch(folder: str) -> float:
    """Times torch's DataLoader, after its first batch."""
    import torch

    loader = torch.utils.data.DataLoader(
        _Photos(folder), BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS
    )
    return _time(iter(loader), lambda batch: batch.numpy())


def _time(batches, pixels) -> float:
    next(batches)
    started = time.perf_counter()
    total = 0
    for _ in range(NUM_BATCHES):
        total += len(pixels(next(batches)))
    assert total == NUM_BATCHES * BATCH_SIZE
    return time.perf_counter() - started


if __name__ == "__main__":
    read = {"copymit": read_here, "torch": read_with_torch}[sys.argv[1]]
    print(read(sys.argv[2]))
