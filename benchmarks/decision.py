"""How often the decision on a generation is wrong, and how many copies it finds.

    python -m benchmarks.decision IMAGENETTE.tar FLICKR8K.tar CACHE docs/decisions_table.md

The archives hold photos, CACHE keeps their features. Real photos stand for a model's
images and for those that it was trained on: some training photos are duplicated, some come
back altered, the other generations are photos that are not in the training set. All is
drawn again for each seed. A descriptor decides together with the correlation of pixels,
which counts where pixels agree tile by tile, too, and alone for comparison. Exact copies
need no statistics; none come back here. Prints the table and writes it, and prints
which photos were falsely called copies of which.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.altered_photos import Photos, load_photos, load_pixels
from copymit.embedding.store import Embeddings
from copymit.evaluation.decide import is_repeated
from copymit.scores.conformal import adjust, combine, fit_null, p_values
from copymit.scores.nearness import SamePicture, duplicate_threshold, measure_nearness
from copymit.scores.tiled import agrees, compare_tiles, tiled_l2
from copymit.search.exact import Neighbours

RATE = 0.01
BESIDE, SIDE_PX = "pixels", 128
NEIGHBOURS = 11
SEEDS = 12
EMBEDDERS = ("sscd_288_int8", "efficientnet_lite0")
# Photos of each archive that are embedded, and how many of them altered.
SIZES = {"imagenette2-224": (5500, 500), "flickr8k-2000": (2000, 250)}


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


class Draw(NamedTuple):
    """What is drawn, by rows of `Photos`.

    Attributes:
      generations: the copies first, which are altered photos of the training set.
      copies: how many.
      heldout: known not to be in the training set.
      references: the training set.
      pictures: a number for each of them, the same for equal ones.
    """

    generations: np.ndarray
    copies: int
    heldout: np.ndarray
    references: np.ndarray
    pictures: np.ndarray


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
        "runs with a false one | false discovery rate | found | rate without pixels | "
        "found without |",
        "|---" * 12 + "|",
    ]
    pairs: Counter[tuple[str, str]] = Counter()
    for archive in (imagenette, flickr):
        name = Path(archive).stem
        size = (Path(cache), *SIZES[name])
        photos = {e: load_photos(archive, e, *size) for e in (*EMBEDDERS, BESIDE)}
        cosines = {e: seen.rows @ seen.rows.T for e, seen in photos.items()}
        pixels = load_pixels(archive, SIDE_PX, *size)
        by = [names for e in EMBEDDERS for names in ((e, BESIDE), (e,))]
        rows: dict[str, list[str]] = {embedder: [] for embedder in EMBEDDERS}
        for case in cases(SIZES[name][0], "imagenette" in name):
            found = [
                simulate(photos, cosines, pixels, by, case, s) for s in range(SEEDS)
            ]
            for embedder in EMBEDDERS:
                both = [outcome[embedder, BESIDE] for outcome in found]
                alone = [outcome[embedder,] for outcome in found]
                rows[embedder].append(_row(embedder, name, case, both, alone))
                print(rows[embedder][-1], flush=True)
                pairs.update(pair for outcome in both for pair in outcome.false)
        lines += itertools.chain(*rows.values())
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


def simulate(
    photos: Mapping[str, Photos],
    cosines: Mapping[str, np.ndarray],
    pixels: Photos,
    by: Iterable[tuple[str, ...]],
    case: Case,
    seed: int,
) -> dict[tuple[str, ...], Outcome]:
    """Draws once, and decides by each set of embedders."""
    drawn = draw(pixels, case, seed)
    judged = {
        name: _judge(name, seen, cosines[name], pixels, drawn)
        for name, seen in photos.items()
    }
    return {names: _decide([judged[e] for e in names], pixels, drawn) for names in by}


def _decide(
    judged: Sequence[tuple[np.ndarray, np.ndarray]], pixels: Photos, drawn: Draw
) -> Outcome:
    p = np.stack([p for p, _ in judged])
    called = adjust(combine(p)) <= RATE
    nearest = np.stack([nearest for _, nearest in judged])
    nearest = nearest[np.nan_to_num(p, nan=2).argmin(axis=0), np.arange(len(called))]
    copies = drawn.copies
    false = [i for i in np.flatnonzero(called) if i >= copies]
    who, whose = drawn.generations[false], drawn.references[nearest[false]]
    return Outcome(
        [(pixels.name(a), pixels.name(b)) for a, b in zip(who, whose, strict=True)],
        int(called[:copies].sum()),
        copies,
    )


def draw(photos: Photos, case: Case, seed: int) -> Draw:
    """Draws training set and generations of a case."""
    rng = np.random.default_rng(seed)
    count, num_altered = len(photos.names), photos.num_altered
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
    again = np.where(altered, photos.altered(twice, 1), twice)
    references = np.concatenate([trained, again])
    return Draw(
        np.concatenate([photos.altered(copied, 0), others]),
        len(copied),
        heldout,
        references,
        np.unique(references, return_inverse=True)[1],
    )


def _judge(
    embedder: str, photos: Photos, cosines: np.ndarray, pixels: Photos, drawn: Draw
) -> tuple[np.ndarray, np.ndarray]:
    """Is p-value and nearest reference of each generation by one embedder."""
    references = drawn.references
    ids = [str(row) for row in range(len(references))]
    features = Embeddings(ids, [photos.rows[references]])
    own = np.arange(len(references))
    background = _nearest(cosines, references, references, own)
    threshold = duplicate_threshold(embedder, background, own, drawn.pictures)
    same = SamePicture(drawn.pictures, threshold)
    if len(drawn.heldout):
        near = _nearest(cosines, drawn.heldout, references)
        found = measure_nearness(near, features, same)
        null = found.nearness[found.similarity < threshold]
    else:
        found = measure_nearness(background, features, same, own)
        null = found.nearness[~is_repeated(background, same, own)]
    model = fit_null(null[np.isfinite(null)])

    near = _nearest(cosines, drawn.generations, references)
    found = measure_nearness(near, features, same)
    p = p_values(model, found.nearness)
    for row in np.flatnonzero(p <= RATE) if embedder == BESIDE else ():
        made = pixels.rows[drawn.generations[row]]
        seen = compare_tiles(
            lambda i, made=made: tiled_l2(made, pixels.rows[references[i]]),
            int(found.reference[row]),
            near.indices[row][found.others[row]].tolist(),
        )
        p[row] = p[row] if agrees(*map(np.array, seen)) else 1.0
    return p, found.reference


def _nearest(
    cosines: np.ndarray,
    queries: np.ndarray,
    references: np.ndarray,
    exclude: np.ndarray | None = None,
) -> Neighbours:
    similarities = cosines[np.ix_(queries, references)]
    if exclude is not None:
        similarities[np.arange(len(queries)), exclude] = -2
    nearest = np.argpartition(-similarities, NEIGHBOURS, 1)[:, :NEIGHBOURS]
    found = np.take_along_axis(similarities, nearest, 1)
    order = np.argsort(-found, 1)
    return Neighbours(
        np.take_along_axis(nearest, order, 1), np.take_along_axis(found, order, 1)
    )


def _row(
    embedder: str,
    name: str,
    case: Case,
    both: Sequence[Outcome],
    alone: Sequence[Outcome],
) -> str:
    wrong = sum(bool(outcome.false) for outcome in both)
    kind = name.split("-")[0].removesuffix("2") + ", one class" * case.one_class
    heldout = f"{case.heldout:,}" if case.heldout else "–"
    return (
        f"| {embedder} | {kind} | {case.trained:,} | {case.duplicated:.0%} | {heldout} | "
        f"{case.generations:,} | {case.copied:.0%} | {wrong} of {len(both)} | "
        f"{_rates(both)} | {_rates(alone)} |"
    )


def _rates(found: Sequence[Outcome]) -> str:
    shares = [len(o.false) / max(1, len(o.false) + o.true) for o in found]
    copies = sum(o.copies for o in found)
    power = f"{100 * sum(o.true for o in found) / copies:.0f} %" if copies else "–"
    return f"{100 * np.mean(shares):.1f} % | {power}"


if __name__ == "__main__":
    main(*sys.argv[1:])
