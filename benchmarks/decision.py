"""How often the decision on a generation is wrong, and how many copies it finds.

    python -m benchmarks.decision IMAGENETTE.tar FLICKR8K.tar CACHE docs/decisions_table.md

The archives hold photos, CACHE keeps their features. Real photos stand for a model's
images and for those that it was trained on: some training photos are duplicated, some come
back altered, the other generations are photos that are not in the training set. All is
drawn again for each seed. Only the descriptor decides here: exact copies need no
statistics. Prints the table and writes it, and prints which photos were falsely called
copies of which.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.altered_photos import Photos, load_photos
from copymit.embedding.store import Embeddings
from copymit.evaluation.decide import is_repeated
from copymit.scores.conformal import adjust, fit_null, p_values
from copymit.scores.nearness import SamePicture, duplicate_threshold, measure_nearness
from copymit.search.exact import Neighbours

RATE = 0.01
NEIGHBOURS = 11
SEEDS = 12
# By embedder: photos of each archive that are embedded, and how many of them altered.
SIZES = {
    "sscd_288_int8": {"imagenette2-224": (5500, 500), "flickr8k-2000": (2000, 250)},
    "efficientnet_lite0": {
        "imagenette2-224": (5500, 500),
        "flickr8k-2000": (2000, 250),
    },
}


class Case(NamedTuple):
    """What is drawn for a simulation.

    Attributes:
      trained: training photos, before some are duplicated.
      generations: in all.
      copied: share of the generations that are altered training photos.
      duplicated: share of the training photos that are there twice; where the photo was
        altered, every other one altered.
      heldout: photos known not to be in the training set; 0 takes the training photos.
      one_class: whether generations that are no copies are of one class.
    """

    trained: int
    generations: int
    copied: float
    duplicated: float
    heldout: int = 0
    one_class: bool = False


class Outcome(NamedTuple):
    """What became of one draw.

    Attributes:
      false: photos called copies of another, which they are not; names of both.
      true: copies found, of so many `copies`.
    """

    false: list[tuple[str, str]]
    true: int
    copies: int


def main(imagenette: str, flickr: str, cache: str, page: str) -> None:
    """Simulates all cases and writes the table."""
    lines = [
        "| descriptor | photos | trained | duplicated | held out | generations | copies | "
        "runs with a false one | false discovery rate | found |",
        "|---" * 10 + "|",
    ]
    pairs: Counter[tuple[str, str]] = Counter()
    for embedder, sizes in SIZES.items():
        for archive in (imagenette, flickr):
            name = Path(archive).stem
            photos = load_photos(archive, embedder, Path(cache), *sizes[name])
            for case in cases(len(photos.names), "imagenette" in name):
                found = [
                    simulate(photos, embedder, case, seed) for seed in range(SEEDS)
                ]
                lines.append(_row(embedder, name, case, found))
                print(lines[-1], flush=True)
                pairs.update(pair for outcome in found for pair in outcome.false)
    Path(page).write_text("\n".join([*lines, ""]))
    for (one, other), count in pairs.most_common():  # to be looked at
        print(f"{count} times a copy: {one} of {other}")


def cases(count: int, has_classes: bool) -> Iterator[Case]:
    """Yields what fits into so many photos."""
    for trained, generations in (
        (200, 200),
        (700, 200),
        (1500, 210),
        (4000, 500),
        (5000, 210),
    ):
        if trained + generations > count - 50:
            continue
        for duplicated in (0.0, 0.2):
            for copied in (0.0, 0.05, 0.3):
                if round(copied * generations) <= 200:
                    yield Case(trained, generations, copied, duplicated)
    yield Case(count // 2, 200, 0.05, 0.0, heldout=count // 5)
    yield Case(count // 2, 200, 0.05, 0.2, heldout=count // 5)
    if has_classes:
        yield Case(count // 2, 50, 0.0, 0.0, one_class=True)


def simulate(photos: Photos, embedder: str, case: Case, seed: int) -> Outcome:
    """Draws once and decides."""
    rng = np.random.default_rng(seed)
    count, num_altered = len(photos.names), len(photos.altered_unit)
    copied = rng.permutation(num_altered)[: round(case.copied * case.generations)]
    rest = rng.permutation(np.setdiff1d(np.arange(count), copied))
    if case.one_class:  # first
        classes = np.array([name.split("/")[2] for name in photos.names])
        rest = rest[np.argsort(classes[rest] != min(classes), kind="stable")]
    new = case.generations - len(copied)
    others, heldout, rest = np.split(rest, [new, new + case.heldout])
    trained = np.concatenate([copied, rest[: case.trained - len(copied)]])
    assert len(trained) == case.trained, "there are too few photos"

    twice = rng.choice(trained, round(case.duplicated * len(trained)), replace=False)
    altered = (twice < num_altered) & (rng.random(len(twice)) < 0.5)
    again = photos.unit[twice].copy()
    again[altered] = photos.altered_unit[twice[altered], 1]
    references = np.concatenate([photos.unit[trained], again])
    pictures = np.concatenate([trained, np.where(altered, -1 - twice, twice)])
    pictures = np.unique(pictures, return_inverse=True)[1]

    features = Embeddings([str(i) for i in range(len(references))], [references])
    own = np.arange(len(references))
    background = _nearest(references, references, own)
    threshold = duplicate_threshold(embedder, background, own, pictures)
    same = SamePicture(pictures, threshold)
    if case.heldout:
        near = _nearest(photos.unit[heldout], references)
        found = measure_nearness(near, features, same)
        null = found.nearness[found.similarity < threshold]
    else:
        found = measure_nearness(background, features, same, own)
        null = found.nearness[~is_repeated(background, same, own)]
    model = fit_null(null[np.isfinite(null)])

    made = np.concatenate([photos.altered_unit[copied, 0], photos.unit[others]])
    found = measure_nearness(_nearest(made, references), features, same)
    called = adjust(p_values(model, found.nearness)) <= RATE
    who, whose = np.append(copied, others), np.append(trained, twice)[found.reference]
    false = [i for i in np.flatnonzero(called) if i >= len(copied)]
    return Outcome(
        [(photos.names[who[i]], photos.names[whose[i]]) for i in false],
        int(called[: len(copied)].sum()),
        len(copied),
    )


def _nearest(
    queries: np.ndarray, references: np.ndarray, exclude: np.ndarray | None = None
) -> Neighbours:
    similarities = queries @ references.T
    if exclude is not None:
        similarities[np.arange(len(queries)), exclude] = -2
    nearest = np.argpartition(-similarities, NEIGHBOURS, 1)[:, :NEIGHBOURS]
    found = np.take_along_axis(similarities, nearest, 1)
    order = np.argsort(-found, 1)
    return Neighbours(
        np.take_along_axis(nearest, order, 1), np.take_along_axis(found, order, 1)
    )


def _row(embedder: str, name: str, case: Case, found: list[Outcome]) -> str:
    shares = [len(o.false) / max(1, len(o.false) + o.true) for o in found]
    wrong = sum(bool(o.false) for o in found)
    copies = sum(o.copies for o in found)
    power = f"{100 * sum(o.true for o in found) / copies:.0f} %" if copies else "–"
    kind = name.split("-")[0].removesuffix("2") + ", one class" * case.one_class
    heldout = f"{case.heldout:,}" if case.heldout else "–"
    return (
        f"| {embedder} | {kind} | {case.trained:,} | {case.duplicated:.0%} | {heldout} | "
        f"{case.generations:,} | {case.copied:.0%} | {wrong} of {len(found)} | "
        f"{100 * np.mean(shares):.1f} % | {power} |"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
