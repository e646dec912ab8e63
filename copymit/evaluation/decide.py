"""Decides which generations are copies, from what was embedded and searched.

Views and pixels enter; scores, and a column for each fact of a generation, leave.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from copymit.embedding.embed import is_blank
from copymit.embedding.headline import deciding
from copymit.embedding.store import Embeddings
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.pixel_witness import look_at_pixels
from copymit.evaluation.search_stage import background_of, unit_vectors
from copymit.evaluation.subject import Subject
from copymit.scores.compute import View
from copymit.scores.conformal import NullModel, fit_null
from copymit.scores.grades import (
    Decisions,
    Finding,
    PixelWitness,
    decide,
    needed_similarity,
    summarise,
)
from copymit.scores.nearness import (
    Nearness,
    SamePicture,
    duplicate_threshold,
    measure_nearness,
    published_threshold,
)
from copymit.scores.provenance import Provenance
from copymit.scores.repeats import UNIQUE, group_repeats, summarise_repeats
from copymit.scores.similarity import Scores
from copymit.search.exact import Neighbours
from copymit.search.nearest import search

# Held-out images that are a better null distribution than many training images.
_MIN_HELDOUT = 100
# Neighbours searched at most for one that is not a duplicate of the nearest.
_MAX_NEIGHBOURS = 1024


class Decided(NamedTuple):
    """What was decided.

    Attributes:
      scores: entries of `scores.json`.
      columns: of `measured.parquet`, a row for each generation.
    """

    scores: Scores
    columns: pd.DataFrame


class _Digests(NamedTuple):
    """Digests of the pixels of a set, in the order of its ids."""

    values: np.ndarray
    blank: Bool[np.ndarray, " N"]


class _Judged(NamedTuple):
    """What one embedder says, and of what.

    Attributes:
      same: which training images are one picture.
      digests: of each set of images.
      about: scores that say what the null is.
    """

    finding: Finding
    same: SamePicture
    digests: dict[str, _Digests]
    about: Scores


def decide_generations(
    subject: Subject,
    artefacts: Artefacts,
    views: Sequence[View],
    provenance: Provenance,
) -> Decided:
    """Decides on every generation.

    Args:
      views: the first is the descriptor; pixels among the others are a second witness,
        and the nearest of all are compared tile by tile.
    """
    by_name = {view.embedder: view for view in views}
    judged = {
        name: _judge(subject, artefacts, by_name[name])
        for name in deciding(subject.eval.embedders)
    }
    descriptor, *others = judged.values()
    nearness, null = descriptor.finding
    blank = descriptor.digests["generations"].blank
    equal = _equal(artefacts, views)
    findings = {name: one.finding for name, one in judged.items()}
    pixels = look_at_pixels(subject, views, findings, equal, blank)
    rate = subject.eval.false_discovery_rate
    correlation = others[0].finding if others else None
    decisions = decide(descriptor.finding, correlation, pixels, rate)
    pictures, threshold = descriptor.same
    scores: Scores = {"false_discovery_rate": rate, "duplicate_threshold": None}
    scores |= descriptor.about
    if threshold <= 1:
        scores["duplicate_threshold"] = threshold
    scores["copy_threshold"] = null and needed_similarity(
        nearness, null, decisions, rate
    )
    scores |= summarise(decisions, pictures, provenance)
    published = published_threshold(views[0].embedder)
    if published is not None:
        scores["published_threshold"] = published
        above = nearness.similarity >= published
        scores["num_above_published_threshold"] = int((above & ~blank).sum())
    groups = _repeats(subject, views[0], threshold, descriptor.digests["generations"])
    prompts = _prompts(subject, views[0].embeddings["generations"].ids)
    scores |= summarise_repeats(groups, prompts)
    return Decided(scores, _columns(views[0], decisions, pixels, nearness, groups))


def _judge(subject: Subject, artefacts: Artefacts, view: View) -> _Judged:
    """Finds how near one embedder sees every generation, and what is no copy."""
    digests = {
        images: _digests(artefacts, view, images)
        for images in view.embeddings
        if images in ("generations", "references", "heldout")
    }
    pictures = np.unique(digests["references"].values, return_inverse=True)[1]
    own = background_of(subject, view.embeddings["references"])
    background = view.neighbours.get("background")
    threshold = 2.0
    if background:
        threshold = duplicate_threshold(
            view.embedder, background.neighbours, own, pictures
        )
    same = SamePicture(pictures, threshold)
    nearness = _nearness(subject, view, "generations", same)
    null, about = _null(subject, view, same, own, digests)
    return _Judged(Finding(nearness, null), same, digests, about)


def _columns(
    view: View,
    decisions: Decisions,
    pixels: PixelWitness,
    nearness: Nearness,
    groups: np.ndarray,
) -> pd.DataFrame:
    ids, references = (
        np.array([*view.embeddings[name].ids, None], object)  # row -1 is nobody
        for name in ("generations", "references")
    )
    columns = pd.DataFrame(
        {
            "grade": decisions.grades,
            "copy_of": references[decisions.copy_of],
            "p": decisions.p,
            "q": decisions.q,
            "nearness": nearness.nearness,
            "repeats": ids[np.where(groups == UNIQUE, -1, groups)],
        }
    )
    if np.isfinite(pixels.distance).any():
        columns["tile_l2"] = pixels.distance
        first, *more = pixels.ratio
        columns["tile_l2_ratio"] = (
            np.where(decisions.unseen, more[0], first) if more else first
        )
    return columns


def _nearness(
    subject: Subject,
    view: View,
    images: str,
    same: SamePicture,
    own: Int[np.ndarray, " Q"] | None = None,
) -> Nearness:
    """Measures nearness; of what has only duplicates among its neighbours, by more."""
    neighbours = view.neighbours[images].neighbours
    references = view.embeddings["references"]
    found = measure_nearness(neighbours, references, same, own)
    if own is not None:
        return found
    rows = np.flatnonzero(np.isnan(found.log_scale))
    k, most = neighbours.indices.shape[1], len(references.ids)
    while len(rows) and k < min(_MAX_NEIGHBOURS, most):
        k = min(8 * k, _MAX_NEIGHBOURS, most)
        result = search(
            view.embeddings[images].unit[rows],
            unit_vectors(references, "references"),
            k,
            backend=subject.eval.search,
            recall_target=subject.eval.recall_target,
            seed=subject.eval.seed,
        )
        more = measure_nearness(result.neighbours, references, same)
        found.log_scale[rows] = more.log_scale
        found.nearness[rows] = more.nearness
        rows = rows[np.isnan(more.log_scale)]
    return found


def _null(
    subject: Subject,
    view: View,
    same: SamePicture,
    own: Int[np.ndarray, " B"],
    digests: dict[str, _Digests],
) -> tuple[NullModel | None, Scores]:
    """Models how near images come that are no copies, and says which they are."""
    values, name, left_out = np.empty(0), "", 0
    if "heldout" in view.neighbours:
        heldout = digests["heldout"]
        found = _nearness(subject, view, "heldout", same)
        usable = np.isfinite(found.nearness) & ~heldout.blank
        known = np.isin(heldout.values, digests["references"].values)
        known |= found.similarity >= same.threshold
        values, left_out = found.nearness[usable & ~known], int(known.sum())
        name = "heldout"
    if len(values) < _MIN_HELDOUT and "background" in view.neighbours:
        neighbours = view.neighbours["background"].neighbours
        found = _nearness(subject, view, "background", same, own)
        usable = np.isfinite(found.nearness) & ~digests["references"].blank[own]
        again = is_repeated(neighbours, same, own)
        others = found.nearness[usable & ~again]
        if len(others) > len(values):
            values, left_out, name = others, int(again.sum()), "training images"
    if not len(values):
        return None, {"copy_null": None, "copy_null_size": 0}
    null = fit_null(values)
    return null, {
        "copy_null": name,
        "copy_null_size": len(null.values),
        "copy_null_duplicates": left_out + len(values) - len(null.values),
        "copy_null_tail": null.size,
        "copy_null_tail_shape": null.shape if null.size else None,
    }


def is_repeated(
    neighbours: Neighbours, same: SamePicture, own: Int[np.ndarray, " B"]
) -> Bool[np.ndarray, " B"]:
    """Says which training images are the same picture as one before them."""
    duplicate = neighbours.similarities >= same.threshold
    duplicate |= same.pictures[neighbours.indices] == same.pictures[own][:, None]
    return np.any(duplicate & (neighbours.indices < own[:, None]), axis=1)


def _repeats(
    subject: Subject, view: View, threshold: float, digests: _Digests
) -> Int[np.ndarray, " Q"]:
    generations = view.embeddings["generations"]
    count = len(generations.ids)
    if count < 2:
        return np.full(count, UNIQUE)
    vectors = unit_vectors(generations, "generations")
    found = search(
        vectors,
        vectors,
        min(subject.eval.num_neighbors, count - 1),
        backend=subject.eval.search,
        exclude=np.arange(count),
        recall_target=subject.eval.recall_target,
        seed=subject.eval.seed,
    )
    pictures = np.unique(digests.values, return_inverse=True)[1]
    return group_repeats(found.neighbours, pictures, threshold, digests.blank)


def _prompts(subject: Subject, ids: Sequence[str]) -> list[str] | None:
    table = subject.prompts()
    if table is None:
        return None
    return table.set_index("id").loc[list(ids), "prompt"].tolist()


def _equal(artefacts: Artefacts, views: Sequence[View]) -> Int[np.ndarray, " Q"]:
    """Finds, among all training images, one of the same pixels; -1 where there is none.

    Embedders see images before or after they are resized; equality in either counts.
    """
    equal = np.full(len(views[0].embeddings["generations"].ids), -1)
    for view in views:
        ours, theirs = (
            _digests(artefacts, view, images)
            for images in ("generations", "references")
        )
        known, rows = np.unique(theirs.values, return_index=True)
        place = np.minimum(np.searchsorted(known, ours.values), len(known) - 1)
        hit = (known[place] == ours.values) & ~ours.blank
        equal = np.where((equal < 0) & hit, rows[place], equal)
    return equal


def _digests(artefacts: Artefacts, view: View, images: str) -> _Digests:
    embeddings: Embeddings = view.embeddings[images]
    store = artefacts.store(view.embedder, images)
    plan = store.find()
    assert plan is not None  # or there were no embeddings
    values = [digest for _, shard in store.shards(plan) for digest in shard.digests]
    assert len(values) == len(embeddings.ids)
    return _Digests(np.array(values, "S16"), np.array([is_blank(d) for d in values]))
