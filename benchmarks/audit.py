"""What an audit costs stage by stage, and whether it finds the copies planted in it.

    python -m benchmarks.audit FOLDER PHOTOS.tar [PHOTOS.tar ...]
        [--generations=20000 --references=200000 --side=40 --embedders=NAME,NAME]

Makes images of photos in FOLDER: references are crops of three of four photos, perhaps
mirrored and brighter or darker; generations are such crops of the others, and one in
twenty is a reference, as it is or altered. With --side=0 images are the photos as they
are, and as many as asked for; the first archive then gives them all. Prints CPU and wall
seconds of each stage, the memory needed until then, and what was found.

Run again, it goes on where it was stopped; what was done before costs nothing then.
"""

import argparse
import io
import itertools
import json
import multiprocessing
import os
import resource
import tarfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from copymit.evaluation.run import run_stages
from copymit.evaluation.stages import DEFAULT_STAGES
from copymit.evaluation.subject import open_pair
from copymit.settings import evaluation_settings

COPIED_EVERY = 20
PHOTO_PX = 112  # to which photos are shrunk before they are cropped
_SUFFIXES = (".jpg", ".jpeg")
_PER_TAR = 10_000


def main() -> None:
    """Makes the images, audits them and prints what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--generations", type=int, default=20_000)
    parser.add_argument("--references", type=int, default=200_000)
    parser.add_argument("--side", type=int, default=40)
    parser.add_argument("--embedders", default="", help="by the size if not given")
    given = parser.parse_args()
    make = make_photos if given.side == 0 else make_crops
    if not (given.folder / "made").exists():
        images = (given.photos, given.generations, given.references, given.side)
        # In a process of its own, whose memory is not the audit's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(make, given.folder, *images).result()
        (given.folder / "made").touch()
    config = evaluation_settings()
    config.embedders = tuple(filter(None, given.embedders.split(",")))
    audit(given.folder, config)


def audit(folder: Path, config: ConfigDict) -> None:
    """Runs the stages one by one."""
    print("| stage | CPU s | of them kernel | wall s | peak memory GB |")
    print("|---|---|---|---|---|")
    used, started = _cpu_seconds(), time.perf_counter()
    subject = open_pair(
        f"{folder}/generations/*.tar",
        f"{folder}/references/*.tar",
        folder / "run",
        config,
        "audit",
    )
    for stage in ("opening", *DEFAULT_STAGES[1:]):
        if stage != "opening":
            run_stages(subject, [stage])
        now, ended = _cpu_seconds(), time.perf_counter()
        user, kernel = (b - a for a, b in zip(used, now, strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"| {stage} | {user + kernel:.1f} | {kernel:.1f} | {ended - started:.1f} | "
            f"{peak:.2f} |",
            flush=True,
        )
        used, started = now, ended
    out = Path(subject.out)
    scores = json.loads((out / "scores.json").read_text())
    print({k: v for k, v in scores.items() if k.startswith(("num_", "copied_"))})
    pages = list((out / "copies").glob("*")) if (out / "copies").exists() else []
    print(
        f"report.html {(out / 'report.html').stat().st_size / 1e6:.2f} MB, "
        f"{len(pages)} files in copies/ "
        f"{sum(path.stat().st_size for path in pages) / 1e6:.2f} MB"
    )
    if (folder / "copies.json").exists():
        _compare_with_planted(folder, out)


def make_photos(
    folder: Path, archives: Sequence[str], generations: int, references: int, side: int
) -> None:
    """Takes photos as they are, the generations first; none of them is a copy."""
    del side
    data = _read_photos(archives[0])[: generations + references]
    assert len(data) == generations + references, "there are too few photos"
    _write_tars(folder / "generations", data[:generations])
    _write_tars(folder / "references", data[generations:])


def make_crops(
    folder: Path, archives: Sequence[str], generations: int, references: int, side: int
) -> None:
    """Makes crops of photos, `side` pixels wide; `copies.json` says what was copied."""
    data = [one for archive in archives for one in _read_photos(archive)]

    def shrink(encoded: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(encoded)).convert("RGB")
        return ImageOps.fit(image, (PHOTO_PX, PHOTO_PX), Image.Resampling.BICUBIC)

    with ThreadPoolExecutor() as pool:
        photos = list(pool.map(shrink, data))
    trained = [photo for i, photo in enumerate(photos) if i % 4]
    others = photos[::4]

    def reference(number: int) -> Image.Image:
        return crop(
            trained[number % len(trained)], side, np.random.default_rng([0, number])
        )

    copies = {}
    rng = np.random.default_rng(1)
    sources = rng.choice(references, generations, replace=False)
    names = list(ALTERATIONS)

    def generation(number: int) -> Image.Image:
        own = np.random.default_rng([1, number])
        if number % COPIED_EVERY:
            return crop(others[number % len(others)], side, own)
        name = names[number // COPIED_EVERY % len(names)]
        copies[f"{number:06d}"] = [f"{sources[number]:06d}", name]
        return ALTERATIONS[name](reference(int(sources[number])), own)

    _write_tars(
        folder / "generations", (_encode(generation(i)) for i in range(generations))
    )
    _write_tars(
        folder / "references", (_encode(reference(i)) for i in range(references))
    )
    (folder / "copies.json").write_text(json.dumps(copies))


def crop(photo: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Cuts a square of half to all of the width out, mirrors it, and changes the light."""
    width = int(rng.integers(PHOTO_PX // 2, PHOTO_PX + 1))
    left, top = (int(x) for x in rng.integers(0, PHOTO_PX - width + 1, 2))
    box = (left, top, left + width, top + width)
    cut = photo.resize((side, side), Image.Resampling.BICUBIC, box)
    if rng.random() < 0.5:
        cut = ImageOps.mirror(cut)
    light = rng.uniform(0.8, 1.2)
    return cut.point(lambda level: min(255, round(level * light)))


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    noisy = pixels + rng.normal(0, 12, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


ALTERATIONS = {
    "as it is": lambda image, rng: image,
    "JPEG quality 50": _jpeg,
    "noise, 12 levels": _noisy,
    "brightness x 1.2": lambda image, rng: image.point(
        lambda x: min(255, round(1.2 * x))
    ),
}


def _read_photos(archive: str) -> list[bytes]:
    """Reads the files of photos, in an order drawn once."""
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if n.lower().endswith(_SUFFIXES))
        order = np.random.default_rng(0).permutation(len(names))
        return [tar.extractfile(names[i]).read() for i in order]  # type: ignore[union-attr]


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_tars(folder: Path, encoded: Iterable[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    left = enumerate(encoded)
    for number in itertools.count():
        part = list(itertools.islice(left, _PER_TAR))
        if not part:
            return
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i, data in part:
                suffix = "png" if data.startswith(b"\x89") else "jpg"
                about = tarfile.TarInfo(f"{i:06d}.{suffix}")
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def _compare_with_planted(folder: Path, out: Path) -> None:
    """Prints how many of the planted copies were found, and what else was called one."""
    import pandas as pd

    planted = json.loads((folder / "copies.json").read_text())
    table = pd.read_parquet(out / "generations.parquet")
    stems = [Path(name).stem for name in table["generation"]]
    copied = {
        stem: (grade, Path(of).stem if of else None)
        for stem, grade, of in zip(stems, table["grade"], table["copy_of"], strict=True)
        if grade not in ("none", "pixels alone")
    }
    print("| alteration | planted | found | the right image |\n|---|---|---|---|")
    for name in ALTERATIONS:
        own = {g: of for g, (of, kind) in planted.items() if kind == name}
        found = [g for g in own if g in copied]
        right = sum(copied[g][1] == own[g] for g in found)
        print(f"| {name} | {len(own)} | {len(found)} | {right} |")
    false = sorted(set(copied) - set(planted))
    print(f"called copies and not planted: {len(false)} {false[:20]}")


def _cpu_seconds() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
